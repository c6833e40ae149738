//! `audit head`: an anchor to keep elsewhere.

use clap::Args;
use serde_json::json;

use super::{KeyOption, Place, unusable};
use crate::audit::{AuditError, Head};
use crate::cli::exit::{Exit, Failure};
use crate::cli::stdio::{print, print_json};

/// Arguments of `audit head`.
#[derive(Args, Debug)]
pub(crate) struct HeadArguments {
    #[command(flatten)]
    place: Place,

    #[command(flatten)]
    key: KeyOption,

    /// The whole head as a JSON object instead of SEQ:HASH
    #[arg(long)]
    json: bool,
}

/// Prints the head, once its signature is checked.
///
/// # Errors
///
/// Code 3 where there is none or it cannot be read; 1 where the key has not signed it.
pub(super) async fn head(arguments: &HeadArguments) -> Result<Exit, Failure> {
    let folder = arguments.place.folder()?;
    let key = arguments.key.key(&folder).await?;
    let found = Head::of(&folder).map_err(unusable)?;
    let head = found.ok_or_else(|| unusable(AuditError::Folder("there is no head".into())))?;
    if !head.signed_by(&key) {
        return Err(Failure::new(Exit::Failed, "the head is not signed with this key")
            .hint("look with `paperclip-bridge audit verify`"));
    }
    if arguments.json {
        print_json(&json!(head))?;
    } else {
        print(&format!("{}:{}\n", head.seq, head.hash))?;
    }
    Ok(Exit::Ok)
}
