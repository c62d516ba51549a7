//! What is carried, in which order, and what a peer that does not read can hold up.

use std::time::{Duration, Instant};

use gnomon_link::{CloseReason, Options, SendError};
use gnomon_proto::{
    Class,
    frame::{Content, Message, Stream},
};
use gnomon_terms::{Bytes, BytesPerSecond, Epoch, Extent};

use crate::fleet::pair;

/// A push of 64 KiB in the background.
fn push(seq: u64) -> Message {
    let extent = Extent::new(seq * 16, 16);
    let content = Content::Data(vec![seq as u8; 16 * 4096]);
    Message::Push { stream: Stream(1), epoch: Epoch(1), seq, extent, class: Class::Background, content }
}

fn fetch(id: u64) -> Message {
    Message::Fetch { stream: Stream(1), epoch: Epoch(1), id, extent: Extent::new(id, 1) }
}

#[tokio::test]
async fn each_class_arrives_whole_and_in_order() {
    let (a, b) = pair(Options::default()).await;
    let mut pushes = b.take_receiver(Class::Background).expect("not taken");
    let mut fetches = b.take_receiver(Class::Demand).expect("not taken");
    assert!(b.take_receiver(Class::Demand).is_none() && b.take_receiver(Class::Pulse).is_none());
    let sender = a.sender();
    let sending = tokio::spawn(async move {
        for seq in 0..200 {
            sender.send(push(seq)).await.expect("sent");
            sender.send(fetch(seq)).await.expect("sent");
        }
    });
    for seq in 0..200 {
        assert_eq!(pushes.recv().await, Some(push(seq)));
        assert_eq!(fetches.recv().await, Some(fetch(seq)));
    }
    sending.await.expect("all sent");
    assert_eq!(b.received_bytes(Class::Background), Bytes(200 * (48 + 65536)));
}

#[tokio::test]
async fn a_plain_thread_can_send() {
    let (a, b) = pair(Options::default()).await;
    let mut fetches = b.take_receiver(Class::Demand).expect("not taken");
    let sender = a.sender();
    let thread = std::thread::spawn(move || (0..100).try_for_each(|id| sender.blocking_send(fetch(id))));
    for id in 0..100 {
        assert_eq!(fetches.recv().await, Some(fetch(id)));
    }
    thread.join().expect("no panic").expect("all sent");
}

#[tokio::test]
async fn a_class_that_is_not_read_fills_up_and_holds_up_no_other() {
    let (a, b) = pair(Options { bulk_queue: 4, ..Options::default() }).await;
    let sender = a.sender();
    let stuffing = async {
        for seq in 0.. {
            sender.send(push(seq)).await.expect("the session is open");
        }
    };
    // Nobody reads: the sender must come to a stop, by itself and before it has taken 256 MiB.
    let stopped = tokio::time::timeout(Duration::from_secs(2), stuffing).await;
    assert!(stopped.is_err() && a.sent_bytes(Class::Background) < Bytes(256 << 20));
    assert!(matches!(a.sender().try_send(push(0)), Err(SendError::Full(_))));
    let mut fetches = b.take_receiver(Class::Demand).expect("not taken");
    for id in 0..100 {
        sender.send(fetch(id)).await.expect("another class is open");
        assert_eq!(fetches.recv().await, Some(fetch(id)));
    }
    assert!(!a.is_closed() && !b.is_closed());
}

#[tokio::test]
async fn demand_passes_a_link_that_is_full_of_bulk() {
    let options = Options { rate: Some(BytesPerSecond(1 << 20)), ..Options::default() };
    let (a, b) = pair(options).await;
    let mut fetches = b.take_receiver(Class::Demand).expect("not taken");
    let sender = a.sender();
    for seq in 0..32 {
        sender.try_send(push(seq)).expect("the queue has room");
    }
    for id in 0..200 {
        sender.send(fetch(id)).await.expect("sent");
        assert_eq!(fetches.recv().await, Some(fetch(id)));
    }
    // 2 MiB of bulk take two seconds at this rate; every demand has passed with most of it still waiting.
    assert!(a.sent_bytes(Class::Background) < Bytes(2 << 20), "demand waited for bulk");
}

#[tokio::test]
async fn a_goodbye_says_why_and_a_closed_session_takes_nothing() {
    let (a, b) = pair(Options::default()).await;
    a.close("the move is done");
    assert_eq!(b.closed().await, CloseReason::Goodbye("the move is done".into()));
    assert!(matches!(a.sender().send(fetch(1)).await, Err(SendError::Closed(CloseReason::Local(_)))));
    assert!(matches!(b.sender().try_send(fetch(1)), Err(SendError::Closed(CloseReason::Goodbye(_)))));
    let mut fetches = b.take_receiver(Class::Demand).expect("not taken");
    assert_eq!(fetches.recv().await, None);
}

#[tokio::test]
async fn a_message_that_breaks_its_rules_is_not_sent() {
    let (a, _b) = pair(Options::default()).await;
    let empty = Message::HashRange { stream: Stream(1), id: 1, extent: Extent::new(0, 0) };
    assert!(matches!(a.sender().send(empty).await, Err(SendError::Frame(_))));
    assert!(!a.is_closed());
}

#[tokio::test]
async fn the_round_trip_is_measured() {
    let options = Options { ping_every: Duration::from_millis(20), ..Options::default() };
    let (a, _b) = pair(options).await;
    while a.rtt().is_none() {
        assert!(!a.is_closed());
        tokio::task::yield_now().await;
    }
}

/// Prints a rate; asserts only that everything arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_goes_through() {
    const FRAMES: u64 = 256;
    let (a, b) = pair(Options::default()).await;
    let mut pushes = b.take_receiver(Class::Background).expect("not taken");
    let sender = a.sender();
    let started = Instant::now();
    let sending = tokio::spawn(async move {
        for seq in 0..FRAMES {
            let content = Content::Data(vec![1; 1 << 20]);
            let extent = Extent::new(seq * 256, 256);
            let class = Class::Background;
            let push = Message::Push { stream: Stream(1), epoch: Epoch(1), seq, extent, class, content };
            sender.send(push).await.expect("sent");
        }
    });
    for _ in 0..FRAMES {
        assert!(pushes.recv().await.is_some());
    }
    sending.await.expect("all sent");
    println!("{:.0} MiB/s over TLS on loopback", FRAMES as f64 / started.elapsed().as_secs_f64());
}
