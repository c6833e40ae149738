//! `audit export`: the whole audit for other programs.

use clap::{Args, ValueEnum};

use super::{FilterOptions, Place, unusable};
use crate::audit::export::{csv, csv_head, har_entry, har_frame};
use crate::audit::query::{lines, read};
use crate::cli::exit::{Exit, Failure};
use crate::cli::stdio::print;

/// Arguments of `audit export`.
#[derive(Args, Debug)]
pub(crate) struct ExportArguments {
    /// In which form
    #[arg(value_enum)]
    form: Form,

    #[command(flatten)]
    filter: FilterOptions,

    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Every record as it stands, byte for byte; takes no filter
    Jsonl,
    /// A row a callback, for spreadsheets
    Csv,
    /// HAR 1.2, for tools that show HTTP; without headers and bodies, which no audit holds
    Har,
}

/// Prints it.
///
/// # Errors
///
/// Code 3 where the audit cannot be read, 2 for a filter that the form does not take.
pub(super) fn export(arguments: &ExportArguments) -> Result<Exit, Failure> {
    let folder = arguments.place.folder()?;
    let filter = arguments.filter.filter();
    let mut printed = Ok(());
    match arguments.form {
        Form::Jsonl => {
            if !filter.is_everything() {
                return Err(Failure::new(
                    Exit::Usage,
                    "export jsonl takes no filter: records as they stand are a chain",
                )
                .hint("`paperclip-bridge audit query --json` filters"));
            }
            lines(&folder, &mut |line| {
                printed = print(&(String::from_utf8_lossy(line).into_owned() + "\n"));
                printed.is_ok()
            })
            .map_err(unusable)?;
        }
        Form::Csv => {
            print(&csv_head())?;
            read(&folder, &filter, &mut |entry| {
                printed = csv(entry).map_or(Ok(()), |row| print(&row));
                printed.is_ok()
            })
            .map_err(unusable)?;
        }
        Form::Har => {
            let (front, back) = har_frame();
            print(&front)?;
            let mut comma = "";
            read(&folder, &filter, &mut |entry| {
                if let Some(entry) = har_entry(entry) {
                    printed = print(&format!("{comma}{entry}"));
                    comma = ",\n";
                }
                printed.is_ok()
            })
            .map_err(unusable)?;
            printed?;
            return print(back).map(|()| Exit::Ok);
        }
    }
    printed.map(|()| Exit::Ok)
}
