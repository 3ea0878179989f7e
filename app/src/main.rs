//! The program: arguments, configuration, terminal, JSON lines, exit codes. What it does is decided in the core.
mod access;
mod app;
mod cli;
mod commands;
mod config;
mod daemon;
mod database;
mod exit;
mod metrics;
mod notify;
mod page;
mod privileges;
mod schedule;
mod screen;
mod services;
mod settings;
mod stack;
mod standing;

use std::process::ExitCode;
use tikv_jemallocator::Jemalloc;

/// glibc's allocator keeps what large files needed in an arena of each thread, and comes to more than the budget with many workers.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    app::run(&cli::command().get_matches()).into()
}
