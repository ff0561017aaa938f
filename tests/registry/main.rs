//! How registries are reached and who we are there: logins, mirrors, short names, and registries that are busy or broken.
//!
//! The registries are servers of the tests (`support/http.rs`), so nothing but the binary is needed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod cost;
mod faults;
mod login;
mod options;
mod places;
mod progress;
mod several;

use std::collections::HashMap;
use std::process::Command;

use fixture::image::{Image, LayerBuilder, Meta};
use serde_json::json;

use support::http::{Answer, registry_of};
use support::{Done, Home, LIMIT, finish};

/// An image with one small file.
fn image() -> Image {
    let layer = LayerBuilder::default().file("hello", Meta::root(0o644), b"hello").unwrap().finish().unwrap();
    Image::new(vec![layer], &json!({ "Cmd": ["/hello"] }))
}

/// The table of a registry that has this image under a name.
fn serving(repository: &str) -> HashMap<String, Answer> {
    registry_of(repository, &image())
}

/// Runs the binary with more variables.
fn run_with(home: &Home, variables: &[(&str, &str)], arguments: &[&str]) -> Done {
    let mut command: Command = home.command(arguments);
    command.envs(variables.iter().copied());
    finish(&mut command, b"", LIMIT)
}
