//! Arguments: `--flag`, `--option VALUE` and plain words. Twenty lines instead of a crate that takes seconds to build.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

/// The command was used wrongly; exit code 2.
#[derive(Debug, PartialEq, Eq)]
pub struct Misuse(pub String);

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

/// What was typed after the command.
#[derive(Debug, Default)]
pub struct Args {
    /// Words that belong to no option.
    pub words: Vec<String>,
    named: BTreeMap<String, String>,
}

impl Args {
    /// Sorts `typed` into the known `flags` and `options`; an unknown one is a misuse.
    pub fn parse(typed: &[String], flags: &[&str], options: &[&str]) -> Result<Args, Misuse> {
        let mut args = Args::default();
        let mut typed = typed.iter();
        while let Some(word) = typed.next() {
            let Some(name) = word.strip_prefix("--") else {
                args.words.push(word.clone());
                continue;
            };
            let value = match (flags.contains(&name), options.contains(&name)) {
                (true, _) => String::new(),
                (_, true) => typed.next().cloned().ok_or_else(|| Misuse(format!("--{name} needs a value")))?,
                _ => return Err(Misuse(format!("--{name} is not known here; see `cargo xtask --help`"))),
            };
            args.named.insert(name.to_owned(), value);
        }
        Ok(args)
    }

    /// Whether a flag was given.
    pub fn has(&self, name: &str) -> bool {
        self.named.contains_key(name)
    }

    /// An option's text, if given.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    /// An option's number, or `default`.
    pub fn number<T: FromStr>(&self, name: &str, default: T) -> Result<T, Misuse> {
        let Some(text) = self.text(name) else { return Ok(default) };
        text.parse().map_err(|_| Misuse(format!("--{name} {text}: write a number")))
    }
}

/// Reads a rate in bytes a second: `400mbit`, `1gbit`, `50MB`, `1000` (bytes).
pub fn rate(text: &str) -> Result<u64, Misuse> {
    let units = [("gbit", 125_000_000), ("mbit", 125_000), ("kbit", 125), ("GB", 1_000_000_000), ("MB", 1_000_000)];
    scaled(text, &units).filter(|&rate| rate > 0).ok_or_else(|| Misuse(format!("rate {text}: write 400mbit or 50MB")))
}

/// Reads a size in bytes: `2GiB`, `512MiB`, `4096`.
pub fn size(text: &str) -> Result<u64, Misuse> {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    scaled(text, &units).ok_or_else(|| Misuse(format!("size {text}: write 2GiB or 512MiB")))
}

/// Reads a time: `1ms`, `250us`, `2s`.
pub fn delay(text: &str) -> Result<Duration, Misuse> {
    let units = [("us", 1), ("ms", 1000), ("s", 1_000_000)];
    scaled(text, &units).map(Duration::from_micros).ok_or_else(|| Misuse(format!("delay {text}: write 1ms or 250us")))
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, scale) =
        units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, *scale))).unwrap_or((text, 1));
    number.trim().parse::<u64>().ok()?.checked_mul(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, Misuse> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Args::parse(&words, &["json"], &["plot", "rounds"])
    }

    #[test]
    fn flags_options_and_words_in_any_order() {
        let args = parse("--json nbd --plot out.svg").unwrap();
        assert!(args.has("json") && !args.has("rounds"));
        assert_eq!((args.words.as_slice(), args.text("plot")), (&["nbd".to_owned()][..], Some("out.svg")));
        assert_eq!(args.number("rounds", 5), Ok(5));
    }

    #[test]
    fn misuse_is_told() {
        for line in ["--jsn", "--plot"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("--rounds many").unwrap().number("rounds", 5).is_err());
    }

    #[test]
    fn units() {
        assert_eq!(rate("400mbit"), Ok(50_000_000));
        assert_eq!(rate("1gbit"), Ok(125_000_000));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(delay("250us"), Ok(Duration::from_micros(250)));
        assert!(rate("0mbit").is_err() && rate("fast").is_err() && delay("-1ms").is_err());
    }
}
