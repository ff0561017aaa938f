//! `cargo xtask check`: what can be known about the tree without network, beside what rustfmt, clippy and rustdoc say.
//!
//! - every crate's licence is one that `deny.toml` allows, and comes from a registry or from this tree;
//! - no crate is there twice but those that `deny.toml` names, and their number does not grow unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::shell::{Fallible, cargo, output, workspace};

/// More locked crates than this need a second thought (and a new number here, with the reason in the commit).
const CRATES_MAX: usize = 260;

/// Prints every finding; true when there is none.
pub fn run() -> Fallible<bool> {
    // Only what is built for the platform we ship: the rest is locked, but no part of anything.
    let target = crate::host::musl_target();
    let metadata = output(&mut cargo(["metadata", "--format-version=1", "--locked", "--filter-platform", &target]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let policy = Policy::read(&fs::read_to_string(workspace().join("deny.toml"))?);
    let findings = dependencies(&metadata, &policy);
    for finding in &findings {
        println!("check: {finding}");
    }
    let crates = metadata["packages"].as_array().map_or(0, Vec::len);
    println!("check: {crates} crates, {} findings", findings.len());
    Ok(findings.is_empty())
}

/// The parts of `deny.toml` that are checked here, in the one form in which this tree writes them: an array with one
/// string a line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Policy {
    licences: BTreeSet<String>,
    duplicates: BTreeSet<String>,
}

impl Policy {
    fn read(text: &str) -> Self {
        let mut policy = Policy::default();
        let mut key = "";
        for line in text.lines().map(str::trim) {
            if let Some((name, _)) = line.split_once(" = [") {
                key = name;
            } else if let Some(value) =
                line.split('"').nth(1).filter(|_| line.starts_with('"') || line.starts_with('{'))
            {
                let value = value.to_owned();
                match key {
                    "allow" => policy.licences.insert(value),
                    "skip" => policy.duplicates.insert(value),
                    _ => false,
                };
            }
        }
        policy
    }

    /// Whether an SPDX expression can be met by allowed licences. Older crates write `/` for `OR`.
    fn permits(&self, expression: &str) -> bool {
        let expression = expression.replace('/', " OR ");
        let words = expression.replace(['(', ')'], " ");
        // In `A OR B` one must hold, in `A AND B` both; parentheses occur only around an OR inside an AND.
        let holds = |alternatives: &str| alternatives.split(" OR ").any(|one| self.licences.contains(one.trim()));
        if expression.contains('(') || !expression.contains(" OR ") {
            words.split(" AND ").all(holds)
        } else {
            words.split(" OR ").any(|one| one.split(" AND ").all(|licence| self.licences.contains(licence.trim())))
        }
    }
}

fn dependencies(metadata: &Value, policy: &Policy) -> Vec<String> {
    let mut findings = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let licence = package["license"].as_str().unwrap_or("(none)");
        versions.entry(name).or_default().push(package["version"].as_str().unwrap_or_default());
        if !policy.permits(licence) {
            findings.push(format!("crate {name} has the licence {licence}, which deny.toml does not allow"));
        }
        let source = package["source"].as_str().unwrap_or("path");
        if source != "path" && !source.starts_with("registry+") {
            findings.push(format!("crate {name} comes from {source}, not from a registry"));
        }
    }
    for (name, versions) in
        versions.iter().filter(|(name, versions)| versions.len() > 1 && !policy.duplicates.contains(**name))
    {
        findings.push(format!("crate {name} is there {} times: {}", versions.len(), versions.join(", ")));
    }
    if packages.len() > CRATES_MAX {
        findings.push(format!("{} crates are locked, more than {CRATES_MAX}", packages.len()));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_read_from_the_policy_and_expressions_are_met() {
        let policy = Policy::read(
            "[licenses]\nallow = [\n  \"MIT\", # why\n  \"Apache-2.0\",\n]\n[bans]\nskip = [\n  \"nix\",\n]\n",
        );
        assert!(policy.duplicates.contains("nix"));
        for met in ["MIT", "MIT OR GPL-3.0", "Apache-2.0/MIT", "MIT AND Apache-2.0", "(MIT OR GPL-3.0) AND Apache-2.0"]
        {
            assert!(policy.permits(met), "{met}");
        }
        for unmet in ["GPL-3.0", "MIT AND GPL-3.0", "(GPL-2.0 OR GPL-3.0) AND MIT", "(none)"] {
            assert!(!policy.permits(unmet), "{unmet}");
        }
    }
}
