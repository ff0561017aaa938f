//! The `WWW-Authenticate` header: what a server wants before it answers (RFC 9110, section 11).

/// One way to authenticate that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// User and password.
    Basic,
    /// A token from a token service (the distribution project's token specification).
    Bearer {
        /// The address of the token service.
        realm: String,
        /// The name under which the service knows this registry.
        service: Option<String>,
        /// What the token must allow.
        scope: Option<String>,
    },
}

/// Reads one header, which may hold several challenges. What is not understood is left out: another one may do.
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut current: Option<(String, Vec<(String, String)>)> = None;
    for item in items(header) {
        match item {
            Item::Scheme(name) => {
                found.extend(current.take().and_then(finish));
                current = Some((name, Vec::new()));
            }
            Item::Parameter(name, value) => {
                if let Some((_, parameters)) = &mut current {
                    parameters.push((name, value));
                }
            }
        }
    }
    found.extend(current.and_then(finish));
    found
}

fn finish((scheme, parameters): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let get = |wanted: &str| {
        parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.clone())
    };
    match scheme.to_ascii_lowercase().as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") }),
        _ => None,
    }
}

enum Item {
    Scheme(String),
    Parameter(String, String),
}

/// Splits a header into schemes and parameters. A word followed by `=` is a parameter, any other begins a challenge.
fn items(header: &str) -> Vec<Item> {
    let mut items = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let word_end = rest.find([' ', '\t', ',', '=', '"']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        let value = after.trim_start_matches([' ', '\t']).strip_prefix('=');
        match (word, value) {
            ("", _) => {
                // Nothing sensible begins here: skip one character, so that this ends.
                let mut skip = rest.chars();
                if skip.next().is_none() {
                    return items;
                }
                rest = skip.as_str();
            }
            (_, None) => {
                items.push(Item::Scheme(word.to_owned()));
                rest = after;
            }
            (_, Some(value)) => {
                let (value, after) = parameter_value(value.trim_start_matches([' ', '\t']));
                items.push(Item::Parameter(word.to_owned(), value));
                rest = after;
            }
        }
    }
}

/// A quoted string with its escapes undone, or a token; and what follows.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    quoted_string(quoted)
}

/// What a quoted string says, from behind its first quote on, and what follows it (RFC 9110, section 5.6.4). One without an
/// end goes to the end of the text.
pub(crate) fn quoted_string(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.chars();
    while let Some(next) = chars.next() {
        match next {
            '"' => break,
            '\\' => value.extend(chars.next()),
            other => value.push(other),
        }
    }
    (value, chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope) }
    }

    #[test]
    fn reads_what_registries_send() {
        for (header, wanted) in [
            (
                r#"Bearer realm="https://auth/token",service="reg",scope="repository:a/b:pull,push""#,
                vec![bearer("https://auth/token", Some("reg"), Some("repository:a/b:pull,push"))],
            ),
            (r#"basic realm="x""#, vec![Challenge::Basic]),
            ("Basic", vec![Challenge::Basic]),
            (
                r#"Negotiate, Basic realm="a, b", BEARER Realm = "r\"q" , service=s"#,
                vec![Challenge::Basic, bearer("r\"q", Some("s"), None)],
            ),
            ("Bearer service=x", vec![]),
            ("", vec![]),
            ("=\"", vec![]),
            ("Bearer realm=\"open", vec![bearer("open", None, None)]),
        ] {
            assert_eq!(parse(header), wanted, "{header}");
        }
    }
}
