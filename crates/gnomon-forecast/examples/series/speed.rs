//! What the models of a series cost: microseconds to take a step in, to learn from it, and to be asked; and bytes.
//!
//! On a noisy day of a thousand steps by default, or on a file with a number in each line: then also how much each model
//! loses on it.

use std::{fs, path::Path, time::Duration, time::Instant};

use anyhow::{Context, Result};
use gnomon_forecast::series::{
    BoostedForecaster, EwmaForecaster, GruForecaster, HoltWintersForecaster, LEVELS, LastForecaster,
    LinearForecaster, QuantileForecaster, Score, SeasonalForecaster, SeriesBlend, SeriesForecaster, Step,
};
use serde_json::{Value, json};

/// Steps of a season of the made-up series, which has three of them.
const DAY: usize = 336;

/// A row for each model.
pub fn run(file: &Path) -> Result<Vec<Value>> {
    let values = match file.is_file() {
        true => read(file)?,
        false => made_up(),
    };
    Ok(models().into_iter().map(|mut model| measure(&mut *model, &values)).collect())
}

/// The eight of the blend, as it makes them, and the blend.
fn models() -> Vec<Box<dyn SeriesForecaster>> {
    vec![
        Box::new(LastForecaster::default()),
        Box::new(EwmaForecaster::new(0.1)),
        Box::new(QuantileForecaster::new(576)),
        Box::new(SeasonalForecaster::new(DAY)),
        Box::new(HoltWintersForecaster::new(DAY)),
        Box::new(LinearForecaster::new(DAY, 0)),
        Box::new(BoostedForecaster::new(DAY, 0)),
        Box::new(GruForecaster::new(DAY, 0, 1)),
        Box::new(SeriesBlend::new(DAY, 0)),
    ]
}

fn measure(model: &mut dyn SeriesForecaster, values: &[f64]) -> Value {
    let (mut observed, mut tended, mut asked) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut score = Score::default();
    for value in values {
        let said = timed(&mut asked, || model.quantiles(0, &LEVELS));
        if let Some(said) = said.and_then(|said| said.try_into().ok()) {
            score.judge(&said, *value);
        }
        timed(&mut observed, || model.observe(&Step::of(*value)));
        timed(&mut tended, || model.tend());
    }
    let micros = |spent: Duration| (spent.as_secs_f64() * 1e8 / values.len().max(1) as f64).round() / 100.0;
    json!({
        "case": format!("speed, {}", model.name()), "observe_us": micros(observed), "learn_us": micros(tended),
        "forecast_us": micros(asked), "bytes": model.bytes(), "pinball": score.loss, "covered": score.covered,
    })
}

fn timed<T>(spent: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    *spent += begun.elapsed();
    done
}

fn read(file: &Path) -> Result<Vec<f64>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    text.lines().map(|line| line.trim().parse().with_context(|| format!("'{line}' is no number"))).collect()
}

fn made_up() -> Vec<f64> {
    let mut seed = 7u64;
    let mut noise = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f64 / (1u64 << 24) as f64
    };
    let day = |step: usize| 50.0 + 40.0 * (step as f64 / DAY as f64 * std::f64::consts::TAU).sin();
    (0..3 * DAY).map(|step| day(step) + 20.0 * noise()).collect()
}
