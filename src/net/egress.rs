//! What a container may reach: rules as users write them, [`netstack::Rule`].

use std::sync::Arc;

use netstack::{NoRule, Rule};

use crate::NetError;

/// Reads rules; the first that is none is an error.
pub fn parse(rules: &[String]) -> Result<Arc<[Rule]>, NetError> {
    let read = |text: &String| text.parse().map_err(|NoRule(why)| NetError::Rule { text: text.clone(), why });
    rules.iter().map(read).collect()
}
