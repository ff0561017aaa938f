//! The tags of a repository (distribution specification, "Listing Tags").

use oci::Reference;
use serde::Deserialize;
use ureq::http::Method;

use crate::error::RegistryError;
use crate::paging::pages;
use crate::transport::Request;
use crate::{Registry, Result};

/// The longest page that is read, in bytes.
const PAGE_MAX: u64 = 4 << 20;
/// The most pages that are read: a hundred thousand tags, where a registry gives as many at once as it is asked for.
const PAGES_MAX: usize = 100;
/// How many tags a registry is asked for at once.
const PAGE: usize = 1000;

#[derive(Deserialize)]
struct Page {
    /// Go writes an empty list as null.
    tags: Option<Vec<String>>,
}

impl Registry {
    /// The repository's tags as references, in the order in which its registry tells them. More than can be read are an error,
    /// and so is one that the grammar does not have: who asks for all must not get some.
    pub fn tags(&self, repository: &Reference) -> Result<Vec<Reference>> {
        let refuse = |why| RegistryError::Tags { name: repository.familiar_name(), why };
        self.transport.at_each(repository, |endpoint| {
            let request = Request::pull(Method::GET, repository, endpoint, &format!("tags/list?n={PAGE}"));
            let mut found = Vec::new();
            let whole = pages(&self.transport, &request, PAGE_MAX, PAGES_MAX, |page| {
                let page: Page =
                    serde_json::from_slice(&page.body).map_err(|cause| oci::DocumentError::Json { cause })?;
                let tags = page.tags.unwrap_or_default();
                // More a page than were asked for are as bad as more pages.
                if found.len() + tags.len() > PAGES_MAX * PAGE {
                    return Err(refuse(format!("there are more than {} of them", PAGES_MAX * PAGE)));
                }
                for tag in tags {
                    let reference = format!("{}:{tag}", repository.name()).parse();
                    found.push(reference.map_err(|_| refuse(format!("{tag:?} is no tag")))?);
                }
                Ok(true)
            })?;
            if !whole {
                return Err(refuse(format!("there are more than {PAGES_MAX} pages of them")));
            }
            Ok(found)
        })
    }
}
