//! The program: arguments, configuration, terminal, JSON lines, exit codes. What it does is decided in the core.

mod app;
mod cli;
mod commands;
mod config;
mod exit;
mod screen;
mod settings;

use mimalloc::MiMalloc;
use std::process::ExitCode;

/// Gives the memory of files that were sent back at once. glibc's keeps it in each thread's arena: 64 workers came to more than the budget.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    app::run(&cli::command().get_matches()).into()
}
