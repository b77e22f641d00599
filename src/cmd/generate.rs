//! `trivet generate`, not in the help: man pages and shell completions out of the grammar itself,
//! for whoever makes a package. What a package holds is as true as `--help`.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Subcommand};
use clap_complete::Shell;

use crate::error::CliError;
use crate::output::{self, Format};

/// What to make.
#[derive(Debug, Subcommand)]
pub enum Generate {
    /// A page for each command, in section 1
    Man(GenerateArgs),
    /// For bash, fish and zsh, under the names that they look for
    Completions(GenerateArgs),
}

/// Where.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Directory to write into; made if it is not there
    dir: PathBuf,
}

/// Makes it.
///
/// # Errors
/// The directory or a file cannot be written.
pub fn run(what: &Generate, format: Format) -> Result<(), CliError> {
    let (Generate::Man(args) | Generate::Completions(args)) = what;
    let failed = |e| CliError::failed(format_args!("writing into {}: {e}", args.dir.display()));
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    let mut grammar = super::Cli::command();
    match what {
        Generate::Man(_) => clap_mangen::generate_to(grammar, &args.dir).map_err(failed)?,
        Generate::Completions(_) => {
            for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
                clap_complete::generate_to(shell, &mut grammar, "trivet", &args.dir)
                    .map_err(failed)?;
            }
        }
    }
    output::print(format, &args.dir, |d| format!("{}\n", d.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_the_shells_know_them() {
        let dir = tempfile::tempdir().unwrap();
        for what in [Generate::Man, Generate::Completions] {
            let dir = dir.path().to_path_buf();
            run(&what(GenerateArgs { dir }), Format::Table).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        for page in ["trivet.1", "trivet-serve.1", "trivet-volume-create.1"] {
            assert!(read(page).starts_with(".ie"), "{page} is a man page");
        }
        for shell in ["trivet.bash", "trivet.fish", "_trivet"] {
            assert!(
                read(shell).contains("undrain"),
                "{shell} knows all commands"
            );
        }
        assert!(
            !dir.path().join("trivet-generate.1").exists(),
            "what is hidden has no page"
        );
    }
}
