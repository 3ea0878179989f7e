//! The command line, made from the table of settings. Also used by the build, for man pages and completions.

use crate::settings::{COMMANDS, EVERYWHERE, Setting, Takes, setting, settings_of};
use clap::{Arg, ArgAction, Command};

/// What the exit code tells; shown by `--help`.
const EXIT_CODES: &str = "Exit codes:
  0    done
  1    failed
  2    wrong usage
  3    done, but something is missing from it (it says what)
  4    a tripwire withheld the snapshot
  10   there is no repository
  11   the log is damaged, went back in time, or is of an unknown format
  12   damage was found
  130  interrupted";

fn argument(setting: &'static Setting) -> Arg {
    let mut help = setting.help.to_owned();
    if let Some(default) = setting.default {
        help = format!("{help} [default: {default}]");
    }
    if !setting.environment.is_empty() {
        help = format!("{help} [env: {}]", setting.environment.join(", "));
    }
    let argument = Arg::new(setting.name).long(setting.name).help(help);
    let argument = match setting.takes {
        Takes::Switch => argument.action(ArgAction::SetTrue),
        Takes::Value(name) => argument.value_name(name).action(ArgAction::Set),
        Takes::Values(name) => argument.value_name(name).action(ArgAction::Append),
    };
    match setting.short {
        Some(short) => argument.short(short),
        None => argument,
    }
}

/// The whole command line.
#[must_use]
pub fn command() -> Command {
    let mut root = Command::new("immich-backup")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Backs up Immich, proves that the backup is whole, and brings it back")
        .after_help(EXIT_CODES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .infer_long_args(true);
    for spec in COMMANDS {
        let mut command = Command::new(spec.name).about(spec.about).after_help(EXIT_CODES);
        if !spec.more.is_empty() {
            command = command.long_about(format!("{}.\n\n{}", spec.about, spec.more));
        }
        if let Some((name, help)) = spec.argument {
            command = command.arg(Arg::new("argument").value_name(name).help(help));
        }
        command = command.args(settings_of(spec).into_iter().filter_map(setting).map(argument));
        command = command.args(EVERYWHERE.iter().filter_map(|name| setting(name)).map(|setting| argument(setting).help_heading("Everywhere")));
        root = root.subcommand(command);
    }
    root
}
