//! Route packs: what each Paperclip release lets cross its bridge, as data.
//!
//! Here: [`Pack`], one of the lists under `policy/packs/`, embedded in the program.
//! Not here: the operator's own rules ([`mod@crate::file`]) and how both are matched ([`crate::rules`]).

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::mistakes::Mistakes;
use crate::reader::Reader;
use crate::route::Template;
use crate::rule::Method;

/// A named route list, such as `paperclip-2026.916`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pack {
    name: &'static str,
    text: &'static str,
}

/// One row of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackRoute {
    /// The request method.
    pub method: Method,
    /// The path.
    pub template: Template,
    /// What the route is for, such as `issue` or `email`; for readers, matching ignores it.
    pub group: String,
    /// Whether a `multipart/form-data` body is admitted beside JSON.
    pub multipart: bool,
}

/// Oldest first.
const PACKS: [Pack; 6] = [
    Pack {
        name: "paperclip-2026.707",
        text: include_str!("../packs/paperclip-2026.707.toml"),
    },
    Pack {
        name: "paperclip-2026.722",
        text: include_str!("../packs/paperclip-2026.722.toml"),
    },
    Pack {
        name: "paperclip-2026.817",
        text: include_str!("../packs/paperclip-2026.817.toml"),
    },
    Pack {
        name: "paperclip-2026.824",
        text: include_str!("../packs/paperclip-2026.824.toml"),
    },
    Pack {
        name: "paperclip-2026.831",
        text: include_str!("../packs/paperclip-2026.831.toml"),
    },
    NEWEST,
];

const NEWEST: Pack = Pack {
    name: "paperclip-2026.916",
    text: include_str!("../packs/paperclip-2026.916.toml"),
};

impl Pack {
    /// The pack of the newest release, the default.
    #[must_use]
    pub const fn newest() -> Self {
        NEWEST
    }

    /// The pack of that name; `None` when there is none.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        PACKS.into_iter().find(|pack| pack.name == name)
    }

    /// Every pack, oldest release first.
    #[must_use]
    pub const fn all() -> &'static [Self] {
        &PACKS
    }

    /// The name, such as `paperclip-2026.916`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The TOML text of the pack as shipped.
    #[must_use]
    pub const fn text(&self) -> &'static str {
        self.text
    }

    /// The rows of the pack, parsed anew on each call: keep the compiled rules, not this.
    ///
    /// # Errors
    ///
    /// The mistakes in the embedded text. Tests prove that the packs as shipped have none.
    pub fn routes(&self) -> Result<Vec<PackRoute>, Mistakes> {
        parse(self.text, self.name)
    }
}

impl fmt::Debug for Pack {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Pack").field(&self.name).finish()
    }
}

fn parse(text: &str, expected_name: &str) -> Result<Vec<PackRoute>, Mistakes> {
    let mut reader = Reader::new(text);
    let Some(document) = reader.document() else {
        return Err(reader.into_mistakes());
    };
    let root = document.get_ref();
    reader.unknown_keys(root, &["name", "release", "route"]);
    reader.required_string(root, "release", 0);
    if let Some(name) = reader.required_string(root, "name", 0)
        && name.value != expected_name
    {
        reader.mistake(
            name.at,
            alloc::format!("the pack is called `{expected_name}` elsewhere"),
        );
    }
    let mut routes = Vec::new();
    for row in reader.tables(root, "route") {
        reader.unknown_keys(row.value, &["group", "method", "path", "queue_body"]);
        let multipart = match reader.string(row.value, "queue_body") {
            Some(body) if body.value == "multipart-or-json" => true,
            Some(body) => {
                reader.mistake(
                    body.at,
                    String::from("`queue_body` is `multipart-or-json` or absent"),
                );
                false
            }
            None => false,
        };
        let group = reader.required_string(row.value, "group", row.at);
        let method = reader.method(row.value, row.at);
        let template = reader.template(row.value, row.at);
        if let (Some(group), Some(method), Some(template)) = (group, method, template) {
            routes.push(PackRoute {
                method,
                template,
                group: group.value.to_string(),
                multipart,
            });
        }
    }
    reader.finish(routes)
}
