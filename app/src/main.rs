//! The program: arguments, configuration, terminal, JSON lines, exit codes. What it does is decided in the core.

mod app;
mod cli;
mod commands;
mod config;
mod exit;
mod screen;
mod settings;

use std::process::ExitCode;

fn main() -> ExitCode {
    app::run(&cli::command().get_matches()).into()
}
