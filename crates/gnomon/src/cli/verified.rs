//! What a comparison of two copies found, on the screen and as an exit code.

use gnomon_terms::Bytes;

use super::{Ended, output::facts};
use crate::api::{
    ApiError, Kind,
    types::{JobView, Verified},
};

/// Extents that are shown to a person; `--json` has all that are listed.
const SHOWN: usize = 20;

/// What a job found, if it compared something.
pub fn of(job: &JobView) -> Option<Verified> {
    let result = job.result.clone().filter(|_| job.kind == "verify")?;
    serde_json::from_value(result).ok()
}

/// Success when nothing differs.
pub fn verdict(found: &Verified) -> Ended {
    match found.same {
        true => Ok(()),
        false => {
            let differing = Bytes(found.differing_bytes);
            Err(ApiError::new(Kind::Corrupt, format!("the copies differ in {differing}, with nothing owed between"))
                .then("do not switch to the copy that is wrong: cancel the move, or copy the volume anew")
                .into())
        }
    }
}

/// The differing extents, and what was compared.
pub fn words(found: &Verified) -> String {
    let mut pairs = vec![
        ("with", found.with.clone()),
        ("compared", Bytes(found.compared_bytes).to_string()),
        ("skipped", skipped(found)),
        ("differing", format!("{} bytes", found.differing_bytes)),
    ];
    let shown = found.extents.iter().take(SHOWN);
    pairs.extend(shown.map(|extent| ("differs", format!("{} bytes at {}", extent.len, extent.at))));
    let of_shown: u64 = found.extents.iter().take(SHOWN).map(|extent| extent.len).sum();
    if of_shown < found.differing_bytes {
        pairs.push(("and", format!("{} bytes more: see --json", found.differing_bytes - of_shown)));
    }
    facts(&pairs)
}

fn skipped(found: &Verified) -> String {
    match (found.lacking_bytes, found.unsettled_bytes) {
        (0, 0) => "nothing".to_string(),
        (lacking, 0) => format!("{} not there yet", Bytes(lacking)),
        (lacking, unsettled) => {
            format!("{} not there yet, {} written all the time", Bytes(lacking), Bytes(unsettled))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::DifferingExtent;

    #[test]
    fn a_long_list_is_cut_and_the_rest_is_counted() {
        let extent = |place: u64| DifferingExtent { at: place * 8192, len: 4096 };
        let found = Verified { differing_bytes: 30 * 4096, extents: (0..25).map(extent).collect(), ..same() };
        let words = words(&found);
        assert_eq!(words.matches("differs ").count(), SHOWN, "{words}");
        assert!(words.contains("40960 bytes more"), "{words}");
        assert!(verdict(&Verified { same: false, ..found }).is_err());
        assert!(verdict(&same()).is_ok());
    }

    fn same() -> Verified {
        Verified {
            same: true,
            with: "b".to_string(),
            compared_bytes: 1 << 20,
            differing_bytes: 0,
            extents: Vec::new(),
            unlisted_bytes: 0,
            lacking_bytes: 0,
            unsettled_bytes: 0,
        }
    }
}
