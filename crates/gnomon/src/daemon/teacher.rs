//! Training while guests run: one thread for all volumes of the daemon, held to a small share of one processor.
//!
//! ```text
//!   a volume's loop ──lesson (what was read, what was missed)──► teacher: a student for each volume
//!         ▲                                                          │ a few updates, then a rest
//!         └──────────────────────── model ───────────────────────────┘
//! ```
//! The loop's thread never trains: it hands lessons over, and takes models in between two turns. A teacher that is
//! behind loses lessons, never holds a loop up.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender},
    thread,
    time::{Duration, Instant},
};

use gnomon_cycle::{Cycle, Forecast};
use gnomon_forecast::sequence::{Experience, Knowledge, LARGEST_FILE, Lesson, Model, Student, shipped};
use gnomon_terms::ResourceId;
use rustix::time::{ClockId, clock_gettime};

use crate::{api::ApiError, config::ModelChoice};

/// The share of one processor that training may take: a fiftieth.
const SHARE: u32 = 50;
/// Updates between two rests: less than a millisecond of work.
const UPDATES: usize = 4;
/// Updates after which a model is handed out, if its student still has more to learn.
const HAND_OUT: usize = 64;
/// Lessons that may wait.
const QUEUE: usize = 16;
/// Volumes that are taught at a time: half a megabyte each.
const STUDENTS: usize = 64;

/// What the loops of a daemon's volumes know and learn.
#[derive(Clone, Default)]
pub struct Learning {
    model: Option<Model>,
    teacher: Option<Teacher>,
}

/// A handle on the thread. It ends with its last handle.
#[derive(Clone)]
pub struct Teacher {
    lessons: SyncSender<Talk>,
}

/// A lesson, whose it is, and where the model goes.
struct Talk {
    volume: ResourceId,
    lesson: Lesson,
    answer: Sender<Model>,
}

/// A volume's end.
pub struct Pupil {
    volume: ResourceId,
    teacher: Teacher,
    answer: Sender<Model>,
    models: Receiver<Model>,
}

impl Learning {
    /// Begins with the network that was chosen, and goes on learning if that is wished. Whoever learns begins with what its
    /// own volume does rather than with the shipped network, whose steps are those of others.
    pub fn new(model: &ModelChoice, learn: bool) -> Result<Learning, ApiError> {
        let model = match model {
            ModelChoice::File(file) => Some(load(file)?),
            ModelChoice::Shipped if !learn => Some(shipped()),
            ModelChoice::Shipped | ModelChoice::Nothing => None,
        };
        let teacher = learn.then(Teacher::start).transpose()?;
        Ok(Learning { model, teacher })
    }

    /// The forecast of a volume's loop, with what was learned before.
    pub fn forecast(&self, before: Experience) -> Forecast {
        Forecast::Knowing(Box::new(self.knowledge(before)))
    }

    /// What a loop knows with what was learned before. A network that has learned goes on if that is still wished, and if
    /// it began as one would begin now.
    pub fn knowledge(&self, before: Experience) -> Knowledge {
        let Experience { recordings, tables, network, .. } = before;
        let (learns, model) = (self.teacher.is_some(), self.model.clone());
        let about = model.as_ref().map(|model| model.about.clone()).unwrap_or_default();
        let model = network.filter(|own| learns && own.about == about).or(model);
        Knowledge { model, recordings, tables, learns }
    }

    /// A volume's place at the teacher's, if there is one.
    pub fn pupil(&self, volume: ResourceId) -> Option<Pupil> {
        let (answer, models) = mpsc::channel();
        Some(Pupil { volume, teacher: self.teacher.clone()?, answer, models })
    }
}

fn load(file: &Path) -> Result<Model, ApiError> {
    let told = |what: String| format!("the model {}: {what}", file.display());
    let size = std::fs::metadata(file).map_err(|error| ApiError::unavailable(told(error.to_string())))?.len();
    if size > LARGEST_FILE as u64 {
        return Err(ApiError::refused(told(format!("{size} bytes are no model of gnomon"))));
    }
    let bytes = std::fs::read(file).map_err(|error| ApiError::unavailable(told(error.to_string())))?;
    Model::decode(&bytes).map_err(|error| ApiError::new(error.kind().into(), told(error.to_string())))
}

impl Pupil {
    /// Hands a lesson over if there is one, and takes in what came of earlier ones. Never waits.
    pub fn attend(&self, cycle: &mut Cycle) {
        if let Some(model) = self.models.try_iter().last() {
            cycle.adopt(model);
        }
        if let Some(lesson) = cycle.lesson() {
            // A teacher that is behind has enough to do: this lesson is lost, and the next one comes.
            let talk = Talk { volume: self.volume, lesson, answer: self.answer.clone() };
            let _ = self.teacher.lessons.try_send(talk);
        }
    }
}

impl Teacher {
    fn start() -> Result<Teacher, ApiError> {
        let (lessons, inbox) = mpsc::sync_channel(QUEUE);
        thread::Builder::new().name("teacher".to_owned()).spawn(move || teach(&inbox)).map_err(ApiError::from)?;
        Ok(Teacher { lessons })
    }
}

/// A student and where its models go.
struct Desk {
    student: Student,
    answer: Sender<Model>,
    /// Updates since a model was handed out.
    since: usize,
}

fn teach(inbox: &Receiver<Talk>) {
    // Of this thread alone. Should it be refused, the share still bounds what training takes.
    let _ = rustix::process::nice(15);
    let mut desks: BTreeMap<ResourceId, Desk> = BTreeMap::new();
    let mut rest_until = Instant::now();
    loop {
        let idle = desks.values().all(|desk| desk.student.behind() == 0);
        let rest = rest_until.saturating_duration_since(Instant::now());
        let heard = if idle { inbox.recv().map_err(RecvTimeoutError::from) } else { inbox.recv_timeout(rest) };
        match heard {
            Ok(talk) => hear(&mut desks, talk),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if Instant::now() >= rest_until {
            let before = thought();
            desks.retain(|_, desk| work(desk));
            rest_until = Instant::now() + (thought() - before) * (SHARE - 1);
        }
    }
}

fn hear(desks: &mut BTreeMap<ResourceId, Desk>, talk: Talk) {
    if desks.len() >= STUDENTS && !desks.contains_key(&talk.volume) {
        return;
    }
    let begin = |lesson: &Lesson, answer| Desk { student: Student::new(lesson), answer, since: 0 };
    let desk = desks.entry(talk.volume).or_insert_with(|| begin(&talk.lesson, talk.answer.clone()));
    if !desk.student.hear(talk.lesson.clone()) {
        // The volume began anew, with other tokens: so does its student.
        *desk = begin(&talk.lesson, talk.answer);
        desk.student.hear(talk.lesson);
    }
}

/// A few updates; false when nobody is there any more to learn for.
fn work(desk: &mut Desk) -> bool {
    let made = desk.student.study(UPDATES);
    desk.since += made;
    if desk.since == 0 || (desk.student.behind() > 0 && desk.since < HAND_OUT) {
        return true;
    }
    desk.since = 0;
    desk.answer.send(desk.student.model()).is_ok()
}

/// Processor time of this thread.
fn thought() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use gnomon_forecast::sequence::{About, Cell, Network, Shape, Source, Vocabulary, judge};

    use super::*;

    /// Longer than any machine needs for some hundred updates.
    const PATIENCE: Duration = Duration::from_secs(300);

    fn pattern(len: usize) -> Vec<u16> {
        (0..len).map(|n| [1, 2, 1, 3][n % 4]).collect()
    }

    fn lesson(vocabulary: Vec<i32>) -> Lesson {
        let vocabulary = Vocabulary::new(vocabulary).expect("a vocabulary");
        let network = Network::seeded(Shape { cell: Cell::Gru, tokens: vocabulary.tokens(), hidden: 8 }, 1);
        Lesson { blocks_per_unit: 16, vocabulary, tokens: pattern(2048), missed: vec![pattern(8)], network }
    }

    #[test]
    fn a_model_comes_back_better_and_another_volume_has_its_own() {
        let teacher = Teacher::start().expect("a thread");
        let tell = |volume, lesson: Lesson| {
            let (answer, models) = mpsc::channel();
            let talk = Talk { volume: ResourceId(volume), lesson, answer };
            assert!(teacher.lessons.send(talk).is_ok());
            models
        };
        let (one, other) = (tell(1, lesson(vec![1, 5, 9])), tell(2, lesson(vec![2, 4, 8])));
        let before = judge(&lesson(vec![1, 5, 9]).network, &pattern(100)).0;
        let (model, foreign) = (one.recv_timeout(PATIENCE).expect("one"), other.recv_timeout(PATIENCE).expect("two"));
        assert!(judge(&model.network, &pattern(100)).0 < before);
        assert_ne!(model.vocabulary, foreign.vocabulary);
        // The first volume begins anew with other tokens: its student does as well.
        let anew = tell(1, lesson(vec![7, 6, 5])).recv_timeout(PATIENCE).expect("anew");
        assert_eq!(anew.vocabulary.deltas(), [7, 6, 5]);
    }

    #[test]
    fn a_new_volume_begins_with_the_shipped_network_unless_it_learns_or_none_is_wished() {
        let traces = |written: Option<&str>, learn: bool| {
            let choice = ModelChoice::of(written.map(Into::into));
            let learning = Learning::new(&choice, learn).expect("nothing to load");
            let knowledge = learning.knowledge(Experience::default());
            knowledge.model.map_or(0, |model| model.about.traces.len())
        };
        assert_eq!((traces(None, false), traces(Some("shipped"), false), traces(Some("none"), false)), (2, 2, 0));
        assert_eq!(traces(None, true), 0, "the steps of its own volume are other ones");
    }

    #[test]
    fn a_network_goes_on_where_learning_is_wished_and_began_the_same() {
        let network = |name: &str| {
            let Lesson { vocabulary, network, blocks_per_unit, .. } = lesson(vec![1, 5, 9]);
            let traces = vec![Source { name: name.to_owned(), digest: String::new(), head: 1.0 }];
            Model { network, vocabulary, blocks_per_unit, about: About { traces, ..About::default() } }
        };
        let begun = |model: Option<&str>, learn: bool, own: &str| {
            let teacher = learn.then(|| Teacher::start().expect("a thread"));
            let learning = Learning { model: model.map(network), teacher };
            let before = Experience { network: Some(network(own)), ..Experience::default() };
            learning.knowledge(before).model.map(|model| model.about.traces[0].name.clone())
        };
        assert_eq!(begun(Some("a"), true, "a").as_deref(), Some("a"));
        assert_eq!(begun(Some("a"), true, "b").as_deref(), Some("a"), "another model was configured since");
        assert_eq!(begun(None, true, "b"), None, "none was configured, and it began with one");
        assert_eq!(begun(None, false, "b"), None, "nothing is to be learned any more");
    }

    #[test]
    fn without_a_teacher_nobody_is_taught_and_a_model_that_is_none_is_told() {
        let alone = Learning::new(&ModelChoice::Nothing, false).expect("nothing to load");
        assert!(alone.pupil(ResourceId(1)).is_none());
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("weights");
        let chosen = ModelChoice::of(Some(file.clone()));
        assert!(Learning::new(&chosen, false).is_err());
        std::fs::write(&file, b"not a model at all").expect("written");
        let Err(error) = Learning::new(&chosen, false) else { panic!("it was taken") };
        assert_eq!(error.kind, crate::api::Kind::Corrupt, "{error}");
    }
}
