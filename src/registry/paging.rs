//! Answers in pages: the next one is named by a `Link` header (RFC 8288) until there is none.

use std::io::Read;

use crate::Result;
use crate::error::RegistryError;
use crate::transport::{Answer, Request, Transport};

/// Asks for each page and hands it on. `each` ends it by `false`, and so do `pages_max` pages, since a registry must not keep us
/// for ever; whether it came to its end.
pub(crate) fn pages(
    transport: &Transport,
    first: &Request<'_>,
    max_bytes: u64,
    pages_max: usize,
    mut each: impl FnMut(&Page) -> Result<bool>,
) -> Result<bool> {
    let mut path = first.path.clone();
    for _ in 0..pages_max {
        let answer = transport.send(&Request { path: path.clone(), ..first.clone() })?;
        let next = answer.header("link").and_then(next_in).map(|link| answer.resolve(link));
        let page = Page {
            is_index: answer.header("content-type").map(oci::media::essence) == Some(oci::media::OCI_INDEX),
            body: read_capped(answer, max_bytes, &path)?,
        };
        match next {
            Some(next) if each(&page)? => match next? {
                // A page that follows itself is the last one.
                next if next == path => return Ok(true),
                next => path = next,
            },
            Some(_) => return Ok(true),
            None => return each(&page).map(|_| true),
        }
    }
    Ok(false)
}

/// One answer.
pub(crate) struct Page {
    /// Whether the registry says that it is an index.
    pub is_index: bool,
    pub body: Vec<u8>,
}

/// The body of an answer that must not be longer than this.
pub(crate) fn read_capped(answer: Answer, max_bytes: u64, path: &str) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    let failed = |cause| RegistryError::Transport { url: path.to_owned(), cause: Box::new(cause) };
    answer.into_reader().take(max_bytes + 1).read_to_end(&mut body).map_err(failed)?;
    if body.len() as u64 > max_bytes {
        return Err(RegistryError::TooLong { what: path.to_owned(), max_bytes });
    }
    Ok(body)
}

/// The address of the link that is marked as the next page.
fn next_in(header: &str) -> Option<&str> {
    // An address may hold commas; each begins with `<`, which it cannot hold.
    header.split('<').skip(1).find_map(|link| {
        let (address, parameters) = link.split_once('>')?;
        let is_next = |parameter: &str| {
            let (name, value) = parameter.split_once('=').unwrap_or_default();
            let value = value.trim().trim_end_matches(',').trim().trim_matches('"');
            name.trim().eq_ignore_ascii_case("rel") && value.eq_ignore_ascii_case("next")
        };
        parameters.split(';').any(is_next).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_links() {
        for (header, next) in [
            (r#"</v2/_catalog?n=2&last=b>; rel="next""#, Some("/v2/_catalog?n=2&last=b")),
            (r#"<https://a/x,y>; title="t"; REL=next"#, Some("https://a/x,y")),
            (r#"<a>; rel="prev", <b>; rel="next""#, Some("b")),
            (r#"<a>; rel="next", <b>; rel="prev""#, Some("a")),
            (r#"<a>; rel="prev""#, None),
            ("<a", None),
            ("", None),
        ] {
            assert_eq!(next_in(header), next, "{header}");
        }
    }
}
