//! Two rule files, one above the other: the operator's, and what one session adds to it.
//!
//! Here: [`Rules::layered`] and [`Rules::fits`]. Not here: one file by itself ([`Rules::compile`]), and who may add what;
//! that is the daemon's to know.

use alloc::string::String;
use alloc::sync::Arc;

use crate::file::{Constrain, PolicyFile};
use crate::mistakes::Mistakes;
use crate::pack::{Pack, PackRoute};
use crate::rule::{Effect, Rule};
use crate::rules::{Rules, constraints_fit, routes};

impl Rules {
    /// The rules of packs and of two files, one above the other: the operator's, and what one session adds to it.
    ///
    /// Deny rules of either win. The allow rules of both count, and the `[constrain]` of `own` also narrows the rules of
    /// `configured`. Rules of `own` are called `session NAME` beside those of `configured`. Neither file's pack and limits
    /// are looked at, and a `[constrain]` that nothing has narrows nothing: see [`Rules::fits`].
    ///
    /// # Errors
    ///
    /// A pack that cannot be read, which tests exclude.
    pub fn layered(
        packs: &[Pack],
        configured: Option<&PolicyFile>,
        own: Option<&PolicyFile>,
    ) -> Result<Self, Mistakes> {
        let (outer, inner) = (constrain(configured), constrain(own));
        let pack_rules = routes(packs)?
            .into_iter()
            .map(|(pack, route)| Rule::of_pack(pack, route).narrowed(outer).narrowed(inner));
        let configured_rules = rules(configured).map(|rule| rule.narrowed(inner));
        let own_rules = rules(own).map(|rule| match configured {
            Some(_) => rule.named_by("session"),
            None => rule,
        });
        let all = pack_rules.chain(configured_rules).chain(own_rules);
        Ok(Self::build(all.map(Arc::new).collect()))
    }

    /// Whether every `[constrain]` of what a session adds has something to narrow.
    ///
    /// # Errors
    ///
    /// Each entry that has nothing, at its line in `own`.
    pub fn fits(packs: &[Pack], configured: Option<&PolicyFile>, own: &PolicyFile) -> Result<(), Mistakes> {
        let mut routes = routes(packs)?;
        // What the operator allows is narrowed like a pack's route.
        routes.extend(configured.iter().flat_map(|file| {
            let allows = file.rules.iter().filter(|rule| rule.effect == Effect::Allow);
            allows.filter_map(|rule| {
                let route = PackRoute {
                    method: rule.method?,
                    template: rule.template.clone(),
                    group: String::new(),
                    multipart: false,
                };
                Some((Pack::newest(), route))
            })
        }));
        constraints_fit(own, &routes)
    }
}

fn constrain(file: Option<&PolicyFile>) -> &[Constrain] {
    file.map(|file| file.constrain.as_slice()).unwrap_or_default()
}

fn rules(file: Option<&PolicyFile>) -> impl Iterator<Item = Rule> {
    file.into_iter()
        .flat_map(|file| file.rules.iter().map(Rule::of_file))
}
