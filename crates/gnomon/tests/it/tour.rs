//! README's tour as it stands: every line of it is run, so that it cannot promise what the program does not do.
//!
//! What differs from a newcomer's machine is in the environment: where the configuration is, and an image that boots
//! at once instead of an operating system's.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    guest,
    house::{Pair, read_until, tool},
};

/// The commands of the tour, without their comments.
fn commands(readme: &str) -> Vec<&str> {
    let (_, tour) = readme.split_once("\n## A tour\n").expect("README has a tour");
    let (_, block) = tour.split_once("```sh\n").expect("with commands");
    let (block, _) = block.split_once("```").expect("that end");
    let commands = block.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
    commands.filter(|line| !line.is_empty()).collect()
}

#[test]
fn every_line_of_the_tour_does_what_it_says() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).expect("README");
    let mut pair = Pair::unlit(["node-a", "node-b"], "", true);
    pair.b.start();
    fs::write(pair.a.path("raw"), guest::disk(&guest::READER)).expect("written");
    let (raw, image) = (pair.a.text("raw"), pair.a.text("debian-12.qcow2"));
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &image]);
    let mut verbs = Vec::new();
    for line in commands(&readme) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["gnomon", "serve", "&"] => pair.a.start(),
            ["gnomon", ref args @ ..] => {
                let ran = pair.a.run(args);
                assert_eq!(ran.code, 0, "{line}: {}{}", ran.out, ran.err);
                println!("$ {line}\n{}", ran.out);
                verbs.push(args[..2].join(" "));
            }
            _ => panic!("'{line}' is not a command of gnomon"),
        }
    }
    for verb in ["volume import", "vm run", "vm move", "trace record", "forecast replay"] {
        assert!(verbs.iter().any(|done| done == verb), "the tour leaves out `gnomon {verb}`");
    }
    assert_eq!((pair.a.role("root").as_str(), pair.b.role("root").as_str()), ("released", "primary"));
    let web = pair.b.ask(&["vm", "show", "web"]);
    assert_eq!(web["status"], "running", "{web}");
    let console = web["console"].as_str().expect("a console");
    read_until(Path::new(console), |said| said.contains(&b'G'));
    assert_eq!(pair.a.ask(&["vm", "ls"]), Value::Array(Vec::new()), "it lives at node-b only");
    assert_eq!(pair.b.run(&["vm", "stop", "web", "--force"]).code, 0);
}
