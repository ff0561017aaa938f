//! How a container is asked whether it works: Docker's `Healthcheck`, which the specification leaves to others.

use serde::{Deserialize, Serialize};

/// A health check, of an image or a container, in the shape of Docker's API. What is 0 or empty was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthCheck {
    /// `NONE`; `CMD`, a program and its arguments; or `CMD-SHELL` and a line for a shell.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// From the end of one probe to the next, in nanoseconds.
    #[serde(rename = "Interval", skip_serializing_if = "is_zero")]
    pub interval_ns: u64,
    /// How long a probe may take, in nanoseconds.
    #[serde(rename = "Timeout", skip_serializing_if = "is_zero")]
    pub timeout_ns: u64,
    /// How long after the start failures do not count, in nanoseconds.
    #[serde(rename = "StartPeriod", skip_serializing_if = "is_zero")]
    pub start_period_ns: u64,
    /// The interval in that time, in nanoseconds.
    #[serde(rename = "StartInterval", skip_serializing_if = "is_zero")]
    pub start_interval_ns: u64,
    /// How many failures in a row make it unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: u64,
}

impl HealthCheck {
    /// What says that there is none.
    pub fn none() -> Self {
        HealthCheck { test: vec!["NONE".to_owned()], ..HealthCheck::default() }
    }

    /// The same with what it does not say as another says it.
    #[must_use]
    pub fn over(self, below: HealthCheck) -> HealthCheck {
        let or = |own: u64, other: u64| if own == 0 { other } else { own };
        HealthCheck {
            test: if self.test.is_empty() { below.test } else { self.test },
            interval_ns: or(self.interval_ns, below.interval_ns),
            timeout_ns: or(self.timeout_ns, below.timeout_ns),
            start_period_ns: or(self.start_period_ns, below.start_period_ns),
            start_interval_ns: or(self.start_interval_ns, below.start_interval_ns),
            retries: or(self.retries, below.retries),
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Go writes an empty list as null.
fn list<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}
