//! A link within one process: what the primary sends is taken by the shadow at once, and its answers come back.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use gnomon_machine::{
    primary::{Acks, Replicator, Resume},
    shadow::{Shadow, ShadowError, Successor},
    wire::{Wire, WireClosed},
};
use gnomon_proto::frame::Message;
use gnomon_terms::Epoch;

/// Called with each message before it is delivered.
pub type Hook = Box<dyn FnMut(&Message) + Send>;

pub struct Link<S: Successor> {
    pub shadow: Arc<Mutex<Shadow<S>>>,
    pub acks: Mutex<Option<Acks>>,
    /// Messages until the link is cut.
    pub left: Arc<AtomicU64>,
    pub hook: Mutex<Option<Hook>>,
    /// Why the shadow gave the session up.
    pub refusal: Mutex<Option<ShadowError>>,
}

impl<S: Successor + 'static> Link<S> {
    /// A session of this primary with this shadow.
    pub fn connect(primary: &mut Replicator, shadow: &Arc<Mutex<Shadow<S>>>, epoch: Epoch) -> (Arc<Link<S>>, Resume) {
        let link = Arc::new(Link {
            shadow: shadow.clone(),
            acks: Mutex::new(None),
            left: Arc::new(AtomicU64::new(u64::MAX)),
            hook: Mutex::new(None),
            refusal: Mutex::new(None),
        });
        let has = {
            let mut shadow = shadow.lock().unwrap();
            shadow.begin(epoch).expect("not an old epoch");
            shadow.has()
        };
        let (acks, resume) = primary.connect(link.clone(), has);
        *link.acks.lock().unwrap() = Some(acks);
        (link, resume)
    }

    pub fn on_message(&self, hook: impl FnMut(&Message) + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }
}

impl<S: Successor> Wire for Link<S> {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        if let Some(hook) = self.hook.lock().unwrap().as_mut() {
            hook(&message);
        }
        let left = self.left.load(SeqCst);
        if left == 0 {
            return Err(WireClosed);
        }
        self.left.store(left.saturating_sub(1), SeqCst);
        let back = Back { acks: self.acks.lock().unwrap().clone().expect("connected"), is_cut: left == 1 };
        let taken = self.shadow.lock().unwrap().take(message, &back);
        if let Err(error) = taken {
            self.refusal.lock().unwrap().get_or_insert(error);
        }
        Ok(())
    }
}

/// The way back; cut with the last message, so that answers are lost too.
struct Back {
    acks: Acks,
    is_cut: bool,
}

impl Wire for Back {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        match message {
            _ if self.is_cut => Err(WireClosed),
            Message::Sealed { checkpoint, ok, .. } => {
                self.acks.sealed(checkpoint, ok);
                Ok(())
            }
            other => panic!("a shadow does not say {other:?}"),
        }
    }
}
