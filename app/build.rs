//! Man pages and completions, beside the program: `target/<profile>/man` and `target/<profile>/completions`.

#[path = "src/cli.rs"]
#[allow(dead_code, reason = "the program uses the rest")]
mod cli;
#[path = "src/settings.rs"]
#[allow(dead_code, reason = "the program uses the rest")]
mod settings;

use clap_complete::Shell;
use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src/cli.rs");
    println!("cargo::rerun-if-changed=src/settings.rs");
    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else { return Ok(()) };
    // OUT_DIR is target/<profile>/build/<package>/out.
    let Some(profile) = out.ancestors().nth(3) else { return Ok(()) };
    let (man, completions) = (profile.join("man"), profile.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(cli::command(), &man)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut cli::command(), "immich-backup", &completions)?;
    }
    Ok(())
}
