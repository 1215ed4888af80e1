//! Dependencies point one way, as ARCHITECTURE.md says.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// What each crate may use of ours; reading it top to bottom, every name has been met before.
const MAY_USE: [(&str, &[&str]); 9] = [
    ("postern-policy", &[]),
    ("postern-common", &["postern-policy"]),
    ("postern-identity", &["postern-common"]),
    ("postern-proxy", &["postern-common"]),
    (
        "postern-authorize",
        &["postern-common", "postern-policy", "postern-identity"],
    ),
    (
        "postern-authenticate",
        &["postern-common", "postern-identity"],
    ),
    (
        "postern-databroker",
        &["postern-common", "postern-identity"],
    ),
    (
        "postern",
        &[
            "postern-common",
            "postern-policy",
            "postern-identity",
            "postern-proxy",
            "postern-authorize",
            "postern-authenticate",
            "postern-databroker",
        ],
    ),
    (
        "postern-fuzz",
        &[
            "postern-common",
            "postern-policy",
            "postern-proxy",
            "postern-authorize",
            "postern-databroker",
        ],
    ),
];

#[test]
fn crates_depend_on_each_other_one_way() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let ours = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|dependency| dependency["kind"].is_null())
            .map(|dependency| dependency["name"].as_str().unwrap())
            .filter(|dependency| dependency.starts_with("postern"));
        uses.insert(name, ours.collect());
    }
    // They drive the whole, or are part of its tests.
    for support in ["postern-tests", "postern-test-dns", "postern-bench"] {
        uses.remove(support);
    }
    let known: BTreeSet<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    assert_eq!(uses.keys().copied().collect::<BTreeSet<_>>(), known);
    for (name, may_use) in MAY_USE {
        for used in &uses[name] {
            assert!(may_use.contains(used), "{name} must not depend on {used}");
        }
    }
}
