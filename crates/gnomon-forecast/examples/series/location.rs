//! Check-ins with the weather: from which region will a user read next, and does a feed help?
//!
//! Regions are cells of 0.05° (4 by 5.5 km). Users' weeks are lived side by side, each user's first 70 % warm the models
//! up, and the rest is judged, each forecast before its check-in. Hour and weekday are those for which is asked; the
//! weather is that of the time asked for (what a feed that is on time says). As a control the same weather is dealt to
//! check-ins by chance. A *move* is a check-in elsewhere than the user's last: that is what a mirror has to know;
//! for it the place where the user was is taken out of what is said.

use std::{collections::BTreeMap, path::Path, time::Duration, time::Instant};

use anyhow::Result;
use gnomon_forecast::location::{
    LocationBlend, LocationForecaster, LocationScore, MAX_PLACES, Moment, Region, Visit, models,
};
use serde_json::{Value, json};

use crate::{
    data::{self, CheckIn},
    round, row,
};

const CELL: f64 = 0.05;
const WARM_UP: f64 = 0.7;
/// Three places are named if their chances together are this; else nothing is said.
const ENOUGH: f32 = 0.8;

/// What a model showed: on all check-ins, on moves, and when it was to be sure.
#[derive(Default)]
struct Shown {
    all: LocationScore,
    moves: LocationScore,
    said: u64,
    right: u64,
}

/// The rows, if the trace is there.
pub fn run(folder: &Path) -> Result<Vec<Value>> {
    let path = folder.join("foursquare_nyc.csv.xz");
    if !path.exists() {
        eprintln!("location: {} is not there", path.display());
        return Ok(Vec::new());
    }
    let (visits, places) = visits(&data::foursquare(&path)?)?;
    let mut rows = Vec::new();
    for (name, feed) in [("weather", Feed::True), ("no feed", Feed::None), ("weather dealt by chance", Feed::Dealt)] {
        let (shown, blend) = live(&fed(&visits, feed), places);
        rows.extend(rows_of(name, &shown));
        rows.push(beliefs(name, &blend));
    }
    rows.extend(costs(&fed(&visits, Feed::None), places));
    Ok(rows)
}

/// What is told of the weather.
#[derive(Clone, Copy, PartialEq)]
enum Feed {
    True,
    None,
    Dealt,
}

/// Visits in the order in which they are lived, whether each is judged, and how many places there are.
fn visits(all: &[CheckIn]) -> Result<(Vec<(Visit, bool)>, usize)> {
    let mut weeks: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for check_in in all {
        let of_user = weeks.entry(check_in.user).or_default();
        if of_user.last() != Some(&check_in.week) {
            of_user.push(check_in.week);
        }
    }
    let mut cells: BTreeMap<(i32, i32), usize> = BTreeMap::new();
    let mut categories: BTreeMap<&str, u8> = BTreeMap::new();
    let mut weathers: BTreeMap<&str, u8> = BTreeMap::new();
    let mut visits = Vec::new();
    for (at, check_in) in all.iter().enumerate() {
        let cell = ((check_in.latitude / CELL).floor() as i32, (check_in.longitude / CELL).floor() as i32);
        let number = cells.len().min(MAX_PLACES - 1);
        let at_place = Region::new(*cells.entry(cell).or_insert(number))?;
        let (known, number) = (&weeks[&check_in.user], categories.len() as u8);
        let category = *categories.entry(&check_in.category).or_insert(number);
        let number = weathers.len() as u8;
        let weather = *weathers.entry(&check_in.weather).or_insert(number);
        let week = known.iter().position(|week| *week == check_in.week).unwrap_or(0);
        let judged = week as f64 >= WARM_UP * known.len() as f64;
        let when = Moment {
            hour: check_in.hour,
            weekday: check_in.weekday,
            neighbours: None,
            feeds: [Some(weather), None, None, None],
        };
        let visit = Visit { who: check_in.user, profile: category, at: at_place, when };
        visits.push(((week as f64 / known.len() as f64, at), visit, judged));
    }
    visits.sort_by(|a, b| a.0.0.total_cmp(&b.0.0).then(a.0.1.cmp(&b.0.1)));
    let mut visits: Vec<(Visit, bool)> = visits.into_iter().map(|(_, visit, judged)| (visit, judged)).collect();
    with_profiles(&mut visits);
    Ok((visits, cells.len().min(MAX_PLACES)))
}

/// A user's profile at a time is what kind of place it was most often at before.
fn with_profiles(visits: &mut [(Visit, bool)]) {
    let mut counts: BTreeMap<u64, [u32; 16]> = BTreeMap::new();
    for (visit, _) in visits {
        let counts = counts.entry(visit.who).or_default();
        let here = usize::from(visit.profile).min(14) + 1;
        visit.profile = (0..16u8).max_by_key(|kind| (counts[usize::from(*kind)], 16 - kind)).unwrap_or(0);
        counts[here] += 1;
    }
}

fn fed(visits: &[(Visit, bool)], feed: Feed) -> Vec<(Visit, bool)> {
    let mut fed = visits.to_vec();
    match feed {
        Feed::True => {}
        Feed::None => fed.iter_mut().for_each(|(visit, _)| visit.when.feeds = [None; 4]),
        Feed::Dealt => {
            // Weather of a check-in far away in the order, by a step that meets every one once.
            let step = 7919;
            for (at, (visit, _)) in fed.iter_mut().enumerate() {
                visit.when.feeds = visits[(at * step + 12_345) % visits.len()].0.when.feeds;
            }
        }
    }
    fed
}

/// What each model showed, and the blend as it is in the end.
fn live(visits: &[(Visit, bool)], places: usize) -> (BTreeMap<&'static str, Shown>, LocationBlend) {
    let mut blend = LocationBlend::default();
    let mut last: BTreeMap<u64, Region> = BTreeMap::new();
    let mut shown: BTreeMap<&'static str, Shown> = BTreeMap::new();
    for (visit, judged) in visits {
        let before = last.insert(visit.who, visit.at);
        if *judged {
            for (name, chances) in blend.each_forecast(visit, places) {
                let shown = shown.entry(name).or_default();
                shown.all.judge(&chances, visit.at);
                if let Some(before) = before.filter(|before| *before != visit.at) {
                    shown.moves.judge(&chances.elsewhere(before), visit.at);
                }
                if let Some(top) = chances.top_if(3, ENOUGH) {
                    shown.said += 1;
                    shown.right += u64::from(top.iter().any(|(place, _)| *place == visit.at));
                }
            }
        }
        blend.observe(visit);
    }
    (shown, blend)
}

/// Whom the blend believes about strangers, users known a little, and users known well.
fn beliefs(feed: &str, blend: &LocationBlend) -> Value {
    let experts = blend.experts().into_iter().map(|expert| {
        json!({ "name": expert.name, "weights": expert.weights.map(|weight| round(weight.into())), "bytes": expert.bytes })
    });
    json!({ "case": format!("foursquare nyc, {feed}, experts"), "experts": experts.collect::<Vec<_>>(),
        "sharpness": blend.sharpness().map(|power| round(power.into())) })
}

/// What each model costs, by itself, in the mean of all visits: microseconds to take one in (learning included) and to be
/// asked, and bytes of state in the end.
fn costs(visits: &[(Visit, bool)], places: usize) -> Vec<Value> {
    let alone = models().into_iter().map(|mut model| cost(&mut *model, visits, places));
    alone.chain([cost(&mut LocationBlend::default(), visits, places)]).collect()
}

fn cost(model: &mut dyn LocationForecaster, visits: &[(Visit, bool)], places: usize) -> Value {
    let (mut asked, mut observed) = (Duration::ZERO, Duration::ZERO);
    for (visit, _) in visits {
        let begun = Instant::now();
        std::hint::black_box(model.forecast(visit.who, visit.profile, &visit.when, places));
        asked += begun.elapsed();
        let begun = Instant::now();
        model.observe(visit);
        observed += begun.elapsed();
    }
    let micros = |spent: Duration| (spent.as_secs_f64() * 1e7 / visits.len().max(1) as f64).round() / 10.0;
    json!({ "case": format!("foursquare nyc, cost of {}", model.name()), "observe_us": micros(observed),
        "forecast_us": micros(asked), "bytes": model.bytes() })
}

fn rows_of(feed: &str, shown: &BTreeMap<&'static str, Shown>) -> Vec<Value> {
    let each = |of: &dyn Fn(&Shown) -> f64| -> Vec<(String, Option<f64>)> {
        shown.iter().map(|(name, shown)| ((*name).to_owned(), Some(of(shown)))).collect()
    };
    let case = |what: &str| format!("foursquare nyc, {feed}, {what}");
    let mut rows = vec![
        row(case("top 3"), "% right", true, &each(&|s| 100.0 * s.all.among_three())),
        row(case("top 1"), "% right", true, &each(&|s| 100.0 * s.all.first())),
        row(case("top 3 of moves"), "% right", true, &each(&|s| 100.0 * s.moves.among_three())),
        row(case("log loss"), "nats", false, &each(&|s| s.all.log_loss())),
        row(case("calibration error"), "chance", false, &each(&|s| s.all.calibration_error())),
    ];
    if let Some(blend) = shown.get("blend") {
        rows.push(
            json!({ "case": case("says three places"), "judged": blend.all.judged(), "moves": blend.moves.judged(),
            "said": round(blend.said as f64 / blend.all.judged().max(1) as f64),
            "right": round(blend.right as f64 / blend.said.max(1) as f64), "least_chance": ENOUGH }),
        );
    }
    rows
}
