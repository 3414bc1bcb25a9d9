//! `-o`: the same facts for people, or as JSON or YAML for programs.

use std::io::Write;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{CliError, yaml};

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[value(alias = "short")]
    Table,
    /// More columns.
    Wide,
    /// JSON, with the keys of `/config_dump` and `/status`.
    Json,
    /// The same as YAML.
    Yaml,
}

/// The format's argument.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct OutputArgs {
    /// Output format.
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub format: Format,
}

impl OutputArgs {
    /// Prints `value`, or for people what `text` makes of it; `text` is told whether to be wide.
    pub(super) fn print(
        &self,
        out: &mut impl Write,
        value: &impl Serialize,
        text: impl FnOnce(bool) -> String,
    ) -> Result<(), CliError> {
        let printed = match self.format {
            Format::Table => text(false),
            Format::Wide => text(true),
            Format::Json => {
                let mut json = serde_json::to_string_pretty(value).map_err(CliError::Encode)?;
                json.push('\n');
                json
            }
            Format::Yaml => yaml::document(&serde_json::to_value(value).map_err(CliError::Encode)?),
        };
        out.write_all(printed.as_bytes())
            .and_then(|()| out.flush())
            .map_err(CliError::Write)
    }
}
