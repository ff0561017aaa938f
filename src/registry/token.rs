//! Tokens: what a challenge asks for, bought from the service that it names (the distribution project's token
//! specifications, by GET and by OAuth 2), and how long it lasts.
//!
//! A service gets a credential only over HTTPS, or where its host and the registry may do without. Two requests may buy the same token side
//! by side; the later one is kept.

use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::Body;
use ureq::http::{Response, Uri};

use crate::address::{join, names_user, origin_of};
use crate::auth::Credential;
use crate::challenge::Challenge;
use crate::error::RegistryError;
use crate::retry;
use crate::transport::{Failure, NAMES_USER, Request, Transport, read_error, whole_body};

/// By what name token services know us.
const CLIENT_ID: &str = "sublet";
/// How long a token lasts whose service does not say (the token specification).
const LASTS_S: u64 = 60;
/// How much earlier a token is renewed.
const EARLY_S: u64 = 10;

/// A token service's answer.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Lasts,
}

/// Seconds, as a number or as a number in quotes; what is neither is as if it were not said.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(from = "serde_json::Value")]
struct Lasts(Option<u64>);

impl From<serde_json::Value> for Lasts {
    fn from(value: serde_json::Value) -> Self {
        let text = match value {
            serde_json::Value::Number(number) => number.to_string(),
            serde_json::Value::String(text) => text,
            _ => return Lasts(None),
        };
        // A fraction of a second is worth nothing.
        Lasts(text.trim().split('.').next().and_then(|whole| whole.parse().ok()))
    }
}

/// What opens a repository, in memory only.
#[derive(Clone)]
pub(crate) struct Grant {
    /// The value of the `Authorization` header.
    pub header: String,
    expires: Option<Instant>,
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grant(…)")
    }
}

impl Grant {
    /// A password does not expire as far as we know.
    fn lasting(header: String) -> Self {
        Grant { header, expires: None }
    }

    /// A token lasts as its service says; it is renewed early.
    fn from_token(answer: TokenAnswer, now: Instant) -> Option<Self> {
        let mut tokens = [answer.token, answer.access_token].into_iter().flatten();
        let token = tokens.find(|token| is_header_safe(token))?;
        let lasts_s = answer.expires_in.0.unwrap_or(LASTS_S).clamp(EARLY_S + 5, 24 * 3600) - EARLY_S;
        Some(Grant { header: format!("Bearer {token}"), expires: now.checked_add(Duration::from_secs(lasts_s)) })
    }

    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

fn is_header_safe(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
}

impl Transport {
    /// Gets what a challenge asks for; `None` if it cannot be met with what we have.
    pub(crate) fn grant(&self, request: &Request<'_>, challenge: &Challenge) -> Result<Option<Grant>, Failure> {
        let credential = self.credential(request.endpoint);
        match challenge {
            Challenge::Bearer { realm, service, .. } => {
                self.token(request, realm, service.as_deref(), credential.as_ref()).map(Some)
            }
            Challenge::Basic => Ok(credential.as_ref().and_then(Credential::basic).map(Grant::lasting)),
        }
    }

    /// Asks the token service for the rights that the request needs, whatever the registry suggests, and for no more.
    fn token(
        &self,
        request: &Request<'_>,
        realm: &str,
        service: Option<&str>,
        credential: Option<&Credential>,
    ) -> Result<Grant, Failure> {
        let refuse = |why| RegistryError::Target { url: self.url_of(request), target: realm.to_owned(), why };
        let uri: Uri = realm.parse().map_err(|_| refuse("it is no web address"))?;
        if names_user(realm) {
            return Err(refuse(NAMES_USER).into());
        }
        // A registry that itself has to use TLS sends nobody to what does without, not even on this machine.
        let may_do_without = |host: &str| {
            self.is_insecure(request.endpoint, host) && self.is_insecure(request.endpoint, &request.endpoint.host)
        };
        match (uri.scheme_str(), uri.authority()) {
            (Some("https"), Some(_)) => {}
            (Some("http"), Some(host)) if may_do_without(host.as_str()) => {}
            _ => return Err(refuse("a token service must use HTTPS").into()),
        }
        let failed = |error| self.broken(realm.to_owned(), error);
        let mut response = self.buy(request, realm, service, credential)?.map_err(failed)?;
        self.note_answer(realm);
        if !matches!(credential, Some(Credential::Refresh(_)))
            && let Some(next) = moved_within(realm, &response)
        {
            response = self.get_token(request, &next, &[], credential)?.map_err(failed)?;
        }
        let response = self.judge_token(request, realm, response)?;
        let body = whole_body(response).map_err(|cause| {
            Failure::Temporary(RegistryError::Transport { url: realm.to_owned(), cause: cause.into() }, None)
        })?;
        let answer = serde_json::from_slice::<TokenAnswer>(&body).ok();
        let grant = answer.and_then(|answer| Grant::from_token(answer, Instant::now()));
        grant.ok_or_else(|| RegistryError::NoToken { url: realm.to_owned() }.into())
    }

    /// The request to the token service. A refresh token goes in a form: as a parameter it would be in logs.
    fn buy(
        &self,
        request: &Request<'_>,
        realm: &str,
        service: Option<&str>,
        credential: Option<&Credential>,
    ) -> Result<Result<Response<Body>, ureq::Error>, RegistryError> {
        if let Some(Credential::Refresh(token)) = credential {
            let agent = self.agent_for(request, realm)?;
            let proxy = self.settings.proxies.for_url(realm)?;
            let scope = request.scopes.values().collect::<Vec<_>>().join(" ");
            let mut form = vec![("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", CLIENT_ID)];
            if !scope.is_empty() {
                form.push(("scope", &scope));
            }
            form.extend(service.map(|service| ("service", service)));
            return Ok(agent.post(realm).config().proxy(proxy).build().send_form(form));
        }
        let scopes: Vec<String> = request.scopes.values().collect();
        let mut query: Vec<(&str, &str)> = scopes.iter().map(|scope| ("scope", scope.as_str())).collect();
        query.extend(service.map(|service| ("service", service)));
        if let Some(Credential::Basic { user, .. }) = credential {
            query.extend([("account", user.as_str()), ("client_id", CLIENT_ID)]);
        }
        self.get_token(request, realm, &query, credential)
    }

    fn get_token(
        &self,
        request: &Request<'_>,
        url: &str,
        query: &[(&str, &str)],
        credential: Option<&Credential>,
    ) -> Result<Result<Response<Body>, ureq::Error>, RegistryError> {
        let agent = self.agent_for(request, url)?;
        let mut get = agent.get(url).config().proxy(self.settings.proxies.for_url(url)?).build();
        for (name, value) in query {
            get = get.query(*name, *value);
        }
        if let Some(header) = credential.and_then(Credential::basic) {
            get = get.header("Authorization", header);
        }
        Ok(get.call())
    }

    fn judge_token(
        &self,
        request: &Request<'_>,
        realm: &str,
        response: Response<Body>,
    ) -> Result<Response<Body>, Failure> {
        let status = response.status().as_u16();
        let after = retry::after(response.headers());
        match status {
            200..300 => Ok(response),
            // A service of OAuth 2 answers 400 to a credential that it does not know (RFC 6749, section 5.2).
            400 | 401 | 403 => Err(self.denied(request, read_error(response).message).into()),
            _ => {
                let message = read_error(response).message;
                let error = RegistryError::Status { url: realm.to_owned(), status, message };
                Err(if retry::is_temporary(status) { Failure::Temporary(error, after) } else { error.into() })
            }
        }
    }
}

/// Where a service says that it gives its tokens, if that is at its own origin: a credential goes to no other.
fn moved_within(realm: &str, response: &Response<Body>) -> Option<String> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get("location")?.to_str().ok()?;
    join(realm, location).filter(|target| !names_user(target) && origin_of(target) == origin_of(realm))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_early_and_checked() {
        let now = Instant::now();
        let grant = |json: &str| Grant::from_token(serde_json::from_str(json).unwrap(), now);
        let token = grant(r#"{"token":"a","expires_in":100}"#).unwrap();
        assert_eq!(token.header, "Bearer a");
        for (json, fresh_s, stale_s) in [
            (r#"{"token":"a","expires_in":100}"#, 89, 91),
            (r#"{"token":"","access_token":"b"}"#, 49, 51),
            (r#"{"access_token":"b","expires_in":0}"#, 4, 6),
            (r#"{"token":"a","expires_in":"100"}"#, 89, 91),
            (r#"{"token":"a","expires_in":100.5}"#, 89, 91),
            (r#"{"token":"a","expires_in":null}"#, 49, 51),
            (r#"{"token":"a","expires_in":{}}"#, 49, 51),
            (r#"{"token":"a","expires_in":-1}"#, 49, 51),
            (r#"{"access_token":"b","expires_in":18446744073709551615}"#, 86_000, 86_401),
        ] {
            let grant = grant(json).unwrap();
            assert!(grant.is_fresh(now + Duration::from_secs(fresh_s)), "{json}");
            assert!(!grant.is_fresh(now + Duration::from_secs(stale_s)), "{json}");
        }
        assert!(grant(r#"{"token":""}"#).is_none());
        assert!(grant(r#"{"token":"a\r\nX: y"}"#).is_none());
        assert!(grant("{}").is_none());
        let lasting = Grant::lasting("Basic x".to_owned());
        assert!(lasting.is_fresh(now + Duration::from_hours(1000)));
        assert_eq!(format!("{lasting:?}"), "Grant(…)");
    }
}
