//! What a guest would see change of its processor, in words: which features, what else, and what its owner can do.
//!
//! There is no way to insist. A guest and its programs asked the processor once; whoever believes that an instruction is
//! there and does not find it is ended by that, and what a new feature adds to the state of a processor, a kernel that did
//! not see it does not save. Which of a hundred features are harmless is not for a guest's host to guess.

use gnomon_qemu::{Accelerator, KVM_CPU, ProcessorDifference};

/// How many features, and how many other differences, are told one by one. A model has some hundred features.
const FEATURES: usize = 64;
const OTHERS: usize = 5;

/// What would differ: features by name, those that are lost first, then all that has a value. Registers hold features, and
/// are told when no feature says why they differ.
pub fn differences(seen: &[ProcessorDifference]) -> String {
    let switched = |from: &str, to: &str| -> Vec<String> {
        seen.iter().filter(|one| one.this == from && one.other == to).map(|one| one.what.clone()).collect()
    };
    let (lost, gained) = (switched("true", "false"), switched("false", "true"));
    let is_feature = |one: &&ProcessorDifference| matches!(one.this.as_str(), "true" | "false");
    let is_register = |one: &&ProcessorDifference| one.what.starts_with("CPUID ");
    let named = !lost.is_empty() || !gained.is_empty();
    let others = seen.iter().filter(|one| !(is_feature(one) || named && is_register(one)));
    // Who made it and what it is called say most to people, and come first.
    let is_name = |one: &&ProcessorDifference| matches!(one.what.as_str(), "vendor" | "model-id");
    let (names, others): (Vec<_>, Vec<_>) = others.partition(is_name);
    let values: Vec<String> = names.iter().chain(&others).map(ToString::to_string).collect();
    let parts = [
        ("", listed(&values, "; ", OTHERS)),
        ("it would lose ", listed(&lost, ", ", FEATURES)),
        ("it would gain ", listed(&gained, ", ", FEATURES)),
    ];
    let told = parts.into_iter().filter_map(|(begin, list)| Some(format!("{begin}{}", list?)));
    told.collect::<Vec<_>>().join("; ")
}

/// What to do about it, by the model that the guest has and whether another one was asked for.
pub fn remedy(vm: &str, model: Option<&str>, accelerator: Accelerator, asked: bool) -> String {
    let anew = format!("`gnomon vm stop {vm}` and `gnomon vm run {vm} …` anew");
    let model = model.or((accelerator == Accelerator::Kvm).then_some(KVM_CPU));
    match model {
        _ if asked => format!("nothing was touched; to change it, {anew}"),
        Some(grows @ ("host" | "max")) => format!(
            "nothing was touched; its model '{grows}' is all that a QEMU can show, which differs from release to release: to \
             have a guest that can change its QEMU, {anew} with a model of a fixed set of features (--cpu; \
             qemu-system-x86_64 -cpu help lists them)"
        ),
        _ => format!("nothing was touched; the guest keeps its QEMU until it boots: {anew}"),
    }
}

/// A list, of which the first so many are told; nothing when it is empty.
fn listed(all: &[String], between: &str, most: usize) -> Option<String> {
    let more = all.len().saturating_sub(most);
    let more = if more > 0 { format!("{between}and {more} more") } else { String::new() };
    (!all.is_empty()).then(|| all[..all.len().min(most)].join(between) + &more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(what: &str, this: &str, other: &str) -> ProcessorDifference {
        ProcessorDifference { what: what.into(), this: this.into(), other: other.into() }
    }

    #[test]
    fn features_are_told_by_name() {
        let register = one("CPUID 0x1 EDX", "0x3", "0x1");
        let table = [
            (vec![one("svm", "true", "false")], "it would lose svm"),
            (
                vec![
                    one("avx2", "true", "false"),
                    one("la57", "false", "true"),
                    one("svm", "true", "false"),
                    register.clone(),
                ],
                "it would lose avx2, svm; it would gain la57",
            ),
            (vec![register.clone()], "CPUID 0x1 EDX: 0x3 and 0x1"),
            (
                vec![one("model", "6", "15"), one("vendor", "A", "B"), one("svm", "true", "false"), register],
                "vendor: A and B; model: 6 and 15; it would lose svm",
            ),
        ];
        for (seen, told) in table {
            assert_eq!(differences(&seen), told);
        }
    }

    #[test]
    fn a_list_has_an_end() {
        let many = differences(&vec![one("model", "6", "15"); OTHERS + 2]);
        assert!(many.ends_with("; and 2 more"), "{many}");
        let many = differences(&vec![one("svm", "true", "false"); FEATURES + 3]);
        assert!(many.ends_with(", and 3 more"), "{many}");
    }

    #[test]
    fn who_has_a_model_that_grows_is_told_to_name_one() {
        let table = [
            (None, Accelerator::Kvm, false, "'host' is all that"),
            (Some("max"), Accelerator::Tcg, false, "'max' is all that"),
            (Some("host"), Accelerator::Kvm, true, "to change it,"),
            (Some("qemu64"), Accelerator::Tcg, false, "until it boots"),
            (None, Accelerator::Tcg, false, "until it boots"),
        ];
        for (model, accelerator, asked, words) in table {
            let told = remedy("web", model, accelerator, asked);
            assert!(told.contains(words) && told.contains("gnomon vm run web"), "{told}");
        }
    }
}
