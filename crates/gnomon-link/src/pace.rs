//! Who may send next, and when: a token bucket with strict priority and a guaranteed share. Pure.
//!
//! ```text
//!   want(class, bytes) ──▶ waiting ──poll(now)──▶ granted, most urgent first
//!                             └─ nothing may go yet: poll again at poll_timeout()
//! ```
//!
//! - The rate bounds what is volunteered. Pulse, control and demand never wait for it (a guest or an
//!   acknowledgement waits for *them*), but they are charged, so bulk makes room.
//! - Among mirror, ram, prefetch and background the more urgent goes first, whatever the others wait for.
//! - So that none of those starves, a class that waits is owed 1/32 of what others send meanwhile; once it is
//!   owed a whole frame, that frame goes, even ahead of the bucket. Four classes, so all lower classes together
//!   cost a busy one at most 4/32 = one eighth.
//! - A frame goes when the bucket is above empty and may take it below: a frame is never cut, and its debt is paid
//!   before the next. What could not wait adds at most a quarter second's worth; more is forgiven.

use gnomon_proto::Class;
use gnomon_terms::{Bytes, BytesPerSecond, Instant};

/// A waiting class is owed one byte for this many that others send.
const SHARE: u64 = 32;
/// Nanoseconds in a second: the bucket counts in bytes × nanoseconds, so that refilling is exact.
const NANOS: i128 = 1_000_000_000;
/// What the bucket holds: 20 ms of the rate, the tick below which nobody notices a burst.
const BURST: i128 = NANOS / 50;
/// How deep the debt may be: a quarter second of the rate.
const DEBT: i128 = NANOS / 4;

/// Decides which class may send next. One frame per class can wait at a time.
#[derive(Clone, Debug)]
pub struct Pacer {
    rate: Option<BytesPerSecond>,
    /// Bytes × nanoseconds in the bucket; negative is debt.
    level: i128,
    filled_at: Instant,
    waiting: [Option<Bytes>; Class::COUNT],
    /// Bytes others sent while the class waited.
    passed_over: [u64; Class::COUNT],
}

impl Pacer {
    /// A pacer with a full bucket; `None` is no limit.
    pub fn new(rate: Option<BytesPerSecond>, now: Instant) -> Pacer {
        let mut pacer =
            Pacer { rate, level: 0, filled_at: now, waiting: [None; Class::COUNT], passed_over: [0; Class::COUNT] };
        pacer.level = pacer.ceiling();
        pacer
    }

    /// Changes the rate from now on. A debt at the old rate is forgiven: it would be a wrong one at the new.
    pub fn set_rate(&mut self, rate: Option<BytesPerSecond>, now: Instant) {
        self.refill(now);
        self.rate = rate;
        self.level = self.level.clamp(0, self.ceiling());
    }

    /// The rate.
    pub fn rate(&self) -> Option<BytesPerSecond> {
        self.rate
    }

    /// `class` wants to send a frame of `bytes`. Replaces what it wanted before.
    pub fn want(&mut self, class: Class, bytes: Bytes) {
        self.waiting[class.index()] = Some(bytes);
    }

    /// `class` no longer wants to send.
    pub fn unwant(&mut self, class: Class) {
        self.waiting[class.index()] = None;
        self.passed_over[class.index()] = 0;
    }

    /// The class that may send its frame now. Call until `None`; then again at [`Pacer::poll_timeout`], and after
    /// every `want` and `set_rate`.
    pub fn poll(&mut self, now: Instant) -> Option<Class> {
        self.refill(now);
        let class = self.next_class()?;
        let bytes = self.waiting[class.index()].take()?;
        self.charge(class, bytes);
        Some(class)
    }

    /// When a waiting frame may go; `None` if none waits, or none may ever go at this rate.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let rate = i128::from(self.rate?.0);
        if rate == 0 || !Class::ALL.into_iter().any(|class| self.is_waiting(class)) {
            return None;
        }
        let missing = (1 - self.level).max(0);
        let nanos = (missing + rate - 1) / rate;
        Some(Instant::from_nanos(self.filled_at.as_nanos().saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX))))
    }

    fn next_class(&self) -> Option<Class> {
        let waiting = || Class::ALL.into_iter().filter(|class| self.is_waiting(*class));
        let urgent = waiting().find(|class| !is_paced(*class));
        let owed = || waiting().find(|class| self.is_owed(*class));
        let open = self.rate.is_none() || self.level > 0;
        urgent.or_else(owed).or_else(|| if open { waiting().next() } else { None })
    }

    fn is_waiting(&self, class: Class) -> bool {
        self.waiting[class.index()].is_some()
    }

    /// True if others have sent so much meanwhile that the frame of `class` is owed. Not at a rate of zero, which
    /// means that nothing may pass.
    fn is_owed(&self, class: Class) -> bool {
        let Some(wanted) = self.waiting[class.index()] else { return false };
        let stopped = self.rate == Some(BytesPerSecond(0));
        !stopped && self.passed_over[class.index()] >= wanted.0.saturating_mul(SHARE).max(1)
    }

    fn charge(&mut self, class: Class, bytes: Bytes) {
        self.passed_over[class.index()] = 0;
        for other in Class::ALL.into_iter().filter(|other| is_paced(*other)) {
            if other != class && self.is_waiting(other) {
                let owed = &mut self.passed_over[other.index()];
                *owed = owed.saturating_add(bytes.0);
            }
        }
        let Some(rate) = self.rate else { return };
        let level = self.level - i128::from(bytes.0) * NANOS;
        // Bulk pays every byte. What could not wait is forgiven beyond the debt, or it would stop bulk for good;
        // a deeper debt that bulk made itself stays.
        let floor = (-i128::from(rate.0) * DEBT).min(self.level);
        self.level = if is_paced(class) { level } else { level.max(floor) };
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.as_nanos().saturating_sub(self.filled_at.as_nanos());
        self.filled_at = self.filled_at.max(now);
        if let Some(rate) = self.rate {
            self.level = (self.level + i128::from(rate.0) * i128::from(elapsed)).min(self.ceiling());
        }
    }

    fn ceiling(&self) -> i128 {
        self.rate.map_or(0, |rate| i128::from(rate.0) * BURST)
    }
}

/// True for the classes that wait for the rate.
fn is_paced(class: Class) -> bool {
    !matches!(class, Class::Pulse | Class::Control | Class::Demand)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FRAME: Bytes = Bytes(1 << 16);
    /// One frame a second.
    const SLOW: Option<BytesPerSecond> = Some(BytesPerSecond(1 << 16));

    /// Runs `pacer` for `seconds`, with each class in `busy` always wanting a frame; counts frames per class.
    fn run(pacer: &mut Pacer, busy: &[Class], seconds: u64) -> [u64; Class::COUNT] {
        let mut sent = [0; Class::COUNT];
        let (mut now, end) = (Instant::ORIGIN, Instant::ORIGIN.after(Duration::from_secs(seconds)));
        busy.iter().for_each(|class| pacer.want(*class, FRAME));
        while now < end {
            while let Some(class) = pacer.poll(now) {
                sent[class.index()] += 1;
                pacer.want(class, FRAME);
            }
            now = pacer.poll_timeout().unwrap_or(end);
        }
        sent
    }

    #[test]
    fn without_a_limit_everything_goes_the_most_urgent_first() {
        let mut pacer = Pacer::new(None, Instant::ORIGIN);
        for class in Class::ALL.into_iter().rev() {
            pacer.want(class, FRAME);
        }
        let order: Vec<Class> = std::iter::from_fn(|| pacer.poll(Instant::ORIGIN)).collect();
        assert_eq!(order, Class::ALL);
        assert_eq!(pacer.poll_timeout(), None);
    }

    #[test]
    fn the_rate_is_kept() {
        let mut pacer = Pacer::new(SLOW, Instant::ORIGIN);
        let sent = run(&mut pacer, &[Class::Background], 1000);
        assert!((999..=1001).contains(&sent[Class::Background.index()]), "{sent:?}");
    }

    #[test]
    fn a_demand_goes_at_once_however_deep_the_debt() {
        let mut pacer = Pacer::new(SLOW, Instant::ORIGIN);
        run(&mut pacer, &[Class::Background, Class::Prefetch], 10);
        let now = Instant::ORIGIN.after(Duration::from_secs(10));
        while pacer.poll(now).is_some() {}
        for _ in 0..100 {
            pacer.want(Class::Demand, FRAME);
            assert_eq!(pacer.poll(now), Some(Class::Demand));
        }
    }

    #[test]
    fn demand_makes_bulk_wait_but_never_more_than_the_debt() {
        let mut pacer = Pacer::new(SLOW, Instant::ORIGIN);
        for _ in 0..20 {
            pacer.want(Class::Demand, FRAME);
            pacer.poll(Instant::ORIGIN);
        }
        pacer.want(Class::Background, FRAME);
        assert_eq!(pacer.poll(Instant::ORIGIN), None);
        let due = pacer.poll_timeout().expect("it waits");
        assert!(due <= Instant::from_micros(250_001), "{due}");
        assert_eq!(pacer.poll(due), Some(Class::Background));
    }

    #[test]
    fn the_less_urgent_has_its_share_and_no_more() {
        let mut pacer = Pacer::new(SLOW, Instant::ORIGIN);
        let sent = run(&mut pacer, &[Class::Mirror, Class::Ram, Class::Prefetch, Class::Background], 10_000);
        let total: u64 = sent.iter().sum();
        assert!(sent[Class::Mirror.index()] * 8 >= total * 7, "{sent:?}");
        for class in [Class::Ram, Class::Prefetch, Class::Background] {
            assert!(sent[class.index()] * 36 >= total, "{class} starves: {sent:?}");
        }
    }

    #[test]
    fn a_rate_of_zero_stops_bulk_until_it_is_raised() {
        let mut pacer = Pacer::new(Some(BytesPerSecond(0)), Instant::ORIGIN);
        pacer.want(Class::Background, FRAME);
        for _ in 0..1000 {
            pacer.want(Class::Demand, FRAME);
            assert_eq!(pacer.poll(Instant::ORIGIN), Some(Class::Demand));
        }
        assert_eq!((pacer.poll(Instant::ORIGIN), pacer.poll_timeout()), (None, None));
        pacer.set_rate(None, Instant::ORIGIN);
        assert_eq!(pacer.poll(Instant::ORIGIN), Some(Class::Background));
    }

    #[test]
    fn a_raised_rate_takes_effect_at_once() {
        let mut pacer = Pacer::new(SLOW, Instant::ORIGIN);
        run(&mut pacer, &[Class::Background], 3);
        let late = pacer.poll_timeout().expect("it waits");
        pacer.set_rate(Some(BytesPerSecond(1 << 30)), Instant::from_micros(3_000_000));
        assert!(pacer.poll_timeout().expect("it waits") < late);
    }

    #[test]
    fn an_idle_link_saves_up_no_more_than_a_burst() {
        let mut pacer = Pacer::new(Some(BytesPerSecond(100 << 16)), Instant::ORIGIN);
        let now = Instant::ORIGIN.after(Duration::from_secs(3600));
        let mut sent = 0;
        pacer.want(Class::Background, FRAME);
        while pacer.poll(now).is_some() {
            sent += 1;
            pacer.want(Class::Background, FRAME);
        }
        assert_eq!(sent, 2, "20 ms at 100 frames a second");
    }
}
