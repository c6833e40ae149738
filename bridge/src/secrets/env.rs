//! `env:NAME`: a variable of the daemon's own environment.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::error::Fault;
use super::place::{Mark, Place, Reading, Surroundings};
use super::reference::Kind;

pub(crate) static KIND: Kind = Kind {
    name: "env",
    form: "env:NAME",
    parse,
};

fn parse(name: &str) -> Result<Arc<dyn Place>, &'static str> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err("NAME is the name of a variable");
    }
    Ok(Arc::new(Variable(name.to_owned())))
}

#[derive(Debug)]
struct Variable(String);

impl Place for Variable {
    fn mark(&self, _: &Surroundings) -> Option<Mark> {
        Some(Mark::Unchanging)
    }

    fn read<'a>(&'a self, around: &'a Surroundings) -> Reading<'a> {
        let value = around.variable(&self.0).map(Zeroizing::new);
        let found = value.ok_or_else(|| {
            Fault::Missing(format!(
                "{} is not set or empty in the environment of this process",
                self.0
            ))
        });
        Box::pin(std::future::ready(
            found.map(|text| (text, Some(Mark::Unchanging))),
        ))
    }
}
