//! What a token must allow (the distribution project's token scope specification).

use std::collections::BTreeMap;

/// Rights on one repository, the lesser first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Access {
    /// To list the names of all repositories, which is a right on the registry.
    Catalog,
    Pull,
    PullPush,
}

impl Access {
    /// The actions in the specification's words.
    fn actions(self) -> &'static str {
        match self {
            Access::Catalog => "*",
            Access::Pull => "pull",
            Access::PullPush => "pull,push",
        }
    }
}

/// The rights that one request needs. Each repository stands here once: of two scopes for one repository GitLab heeds the
/// last alone. Without any, a token only tells that its holder is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Scopes(BTreeMap<String, Access>);

impl Scopes {
    /// To read from a repository.
    pub(crate) fn pull(repository: &str) -> Self {
        Scopes(BTreeMap::from([(repository.to_owned(), Access::Pull)]))
    }

    /// To read from a repository and to write to it.
    pub(crate) fn push(repository: &str) -> Self {
        Scopes(BTreeMap::from([(repository.to_owned(), Access::PullPush)]))
    }

    /// To list the repositories of a registry.
    pub(crate) fn catalog() -> Self {
        Scopes(BTreeMap::from([("catalog".to_owned(), Access::Catalog)]))
    }

    /// These rights and others, as a mount from another repository needs them.
    #[must_use]
    pub(crate) fn and(mut self, others: Scopes) -> Self {
        for (repository, access) in others.0 {
            let held = self.0.entry(repository).or_insert(access);
            *held = access.max(*held);
        }
        self
    }

    /// Whether something is to be written.
    pub(crate) fn writes(&self) -> bool {
        self.0.values().any(|access| *access == Access::PullPush)
    }

    /// The values of the parameter `scope`, one a repository.
    pub(crate) fn values(&self) -> impl Iterator<Item = String> + '_ {
        let kind = |access: Access| if access == Access::Catalog { "registry" } else { "repository" };
        self.0.iter().map(move |(name, access)| format!("{}:{name}:{}", kind(*access), access.actions()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_stands_once_with_the_greater_right() {
        let values = |scopes: &Scopes| scopes.values().collect::<Vec<_>>();
        let both = Scopes::pull("a/b").and(Scopes::push("a/b")).and(Scopes::pull("c"));
        assert_eq!(values(&both), ["repository:a/b:pull,push", "repository:c:pull"]);
        assert_eq!(both, Scopes::pull("c").and(Scopes::push("a/b")).and(Scopes::pull("a/b")));
        assert_eq!(values(&Scopes::catalog()), ["registry:catalog:*"]);
        assert!(values(&Scopes::default()).is_empty());
    }
}
