//! How a move is doing, as its source sees it ten times a second: what is lacking, what the guest would feel, and whether
//! copies fail.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_proto::Class;
use gnomon_terms::{Bytes, BytesPerSecond};

use super::{
    decide,
    departure::Departure,
    hub::Hub,
    progress::{Look, Meter, eta, shrinking},
    rpc::{Ask, State},
    source::{Leg, SourceMove},
};
use crate::api::{ApiError, types::Progress};

/// Pushes in a row that may fail before the move is given up while it primes: a full disk does not become free.
const FAILURES_BORNE: u64 = 20;
/// Bytes of copies under way while the guest leaves the disk alone.
const WINDOW_IDLE: Bytes = Bytes(4 << 20);
/// Bytes of copies under way while the guest uses the disk: four round trips of 2 ms at 1 Gbit/s. What queues behind it
/// would only stand before the guest's own requests.
const WINDOW_BUSY: Bytes = Bytes(1 << 20);
/// Requests in a tick from which on the guest counts as using the disk.
const BUSY_REQUESTS: u64 = 2;

impl SourceMove {
    /// Asks each loop where it is, and sets how much may be under way.
    pub(super) async fn look(&self, hub: &Hub, legs: &[Leg], meter: &mut Meter) -> Result<Look, ApiError> {
        let mut sum = Look::default();
        let mut carried = hub.session().sent_bytes(Class::Ram).0;
        for leg in legs {
            leg.metadata.lock().await.keep(&leg.handle, &self.daemon.records).await?;
            let rate = if meter.rate().0 > 0 { meter.rate() } else { BytesPerSecond(50_000_000) };
            let round_trip = hub.session().rtt().unwrap_or(Duration::from_millis(1));
            let requests = self.shared.requests_since(&leg.handle);
            let window = if requests >= BUSY_REQUESTS { WINDOW_BUSY } else { WINDOW_IDLE };
            let tap = Arc::clone(leg.handle.volume.tap());
            let look = leg
                .handle
                .watcher
                .run(move |cycle, _| {
                    cycle.set_window(window);
                    let stall = cycle.expected_stall(tap.now(), decide::STALL_HORIZON, rate, round_trip);
                    Look { lacking: cycle.lacking(), stall }
                })
                .await?;
            sum.lacking.0 += look.lacking.0;
            sum.stall.reads_expected += look.stall.reads_expected;
            sum.stall.reads_stalling += look.stall.reads_stalling;
            sum.stall.stall += look.stall.stall;
            let so_far = leg.mover.carried();
            carried += so_far.pushed();
        }
        meter.see(Instant::now(), carried);
        Ok(sum)
    }

    /// Tells how priming does, or the sending of the guest. Memory counts as it is in the guest: what is zero, or a change
    /// only, takes less of the link, so that it is there sooner than is told.
    pub(super) fn tell_priming(
        &self,
        look: &Look,
        meter: &Meter,
        memory: u64,
        transfer: Option<&Departure>,
        is_stuck: bool,
    ) {
        let lacking = look.lacking.bytes().0;
        let stall = &look.stall;
        let message = match transfer {
            _ if is_stuck => {
                "the guest writes faster than the link carries: raise --bandwidth, let it write less, or \
                              cancel and move it in mode hybrid or post"
                    .to_string()
            }
            Some(departure) => departure.strain().unwrap_or_else(|| {
                let how = self.ram.as_ref().map(|choice| format!(" {choice}")).unwrap_or_default();
                format!("the guest's memory is on its way{how}")
            }),
            None if stall.reads_expected > 0 => format!(
                "{:.1} % of its reads would wait if it switched now",
                100.0 * stall.reads_stalling as f64 / stall.reads_expected as f64
            ),
            None => String::new(),
        };
        self.job.report(match transfer {
            Some(departure) => {
                let lacking = lacking + departure.owed().0.min(memory);
                shrinking("memory", lacking, self.total() + memory, meter.rate(), message)
            }
            // Memory follows.
            None => Progress {
                eta_s: eta(lacking + memory, meter.rate()),
                ..shrinking("prime", lacking, self.total(), meter.rate(), message)
            },
        });
    }

    /// A destination that cannot store is told while nothing is lost yet.
    pub(super) async fn check_failures(&self, hub: &Hub, legs: &[Leg]) -> Result<(), ApiError> {
        for leg in legs {
            if leg.mover.carried().failures_in_a_row < FAILURES_BORNE {
                continue;
            }
            let state: State = hub.rpc.ask(&Ask::State { stream: leg.stream.0 }).await?;
            let why = state.fault.unwrap_or_else(|| "copies cannot be read here, see the log".to_string());
            *self.shared.fault.lock() = Some(why.clone());
            return Err(ApiError::unavailable(format!("the copy on {} does not go on: {why}", self.record.to))
                .then("the move was given up and nothing has changed; free some space there and begin again"));
        }
        Ok(())
    }
}
