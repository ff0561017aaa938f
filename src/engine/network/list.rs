//! Which networks there are.

use base::Report;

use crate::Engine;
use crate::network::endpoint::{Member, members, wanted_names};
use crate::network::{Network, all};

/// A network and who is in it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The network.
    pub network: Network,
    /// The containers that are in it now.
    pub members: Vec<Member>,
    /// Whether no container has it, running or not.
    pub dangling: bool,
}

/// All networks that were made, by name.
pub fn list(engine: &Engine) -> Result<Vec<Listed>, Report> {
    let (members, wanted) = (members(engine)?, wanted_names(engine)?);
    let listed = all(engine)?.into_iter().map(|network| Listed {
        members: members.iter().filter(|member| member.joining.network == network.id).cloned().collect(),
        dangling: !wanted.contains(&network.name),
        network,
    });
    Ok(listed.collect())
}
