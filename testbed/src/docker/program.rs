//! The program's own image, made of `deploy/docker/Dockerfile` as it is shipped.
//!
//! No image can be pulled, so its base is made here: the distribution that runs here in its smallest form, which has the test tools' PostgreSQL 18 where the
//! official packages would put theirs. The Dockerfile installs the distribution's own beside it. All but the program is made once and kept with the test tools.

use std::collections::hash_map::DefaultHasher;
use std::env::consts::ARCH;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Engine, cannot_start, image};
use crate::postgres::distribution;
use crate::servers::ServerError;

/// Name of the image.
const NAME: &str = "immich-backup:latest";
const BASE: &str = "immich-backup-test-base";
/// All but the program.
const RUNTIME: &str = "immich-backup-test-runtime";
const PREFIX: &str = "docker-runtime-";

/// The Dockerfile.
pub fn dockerfile() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/docker/Dockerfile")
}

/// How Docker calls the architecture that runs here.
fn architecture() -> &'static str {
    match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Makes the image with this compiled program in it, and returns its name; `arguments` are further ones of the build (`VERSION`, …).
pub(super) fn make(engine: &Engine, program: &Path, arguments: &[(&str, &str)]) -> Result<&'static str, ServerError> {
    let refused = |said: String| cannot_start(io::Error::other(said));
    let runtime = runtime(engine)?;
    engine.try_docker(&["load", "--quiet", "--input", &runtime.display().to_string()]).map_err(refused)?;
    let context = engine.folder().join("context");
    let dist = context.join("dist").join(architecture());
    fs::create_dir_all(&dist).map_err(cannot_start)?;
    // Symbols are most of a program that was compiled for tests, and nobody reads them in there.
    let status = Command::new("strip").args(["--strip-debug", "-o"]).args([&dist.join("immich-backup"), program]).stdin(Stdio::null()).status();
    if !status.map_err(cannot_start)?.success() {
        return Err(refused(format!("cannot strip `{}`", program.display())));
    }
    let mut more = vec![("TARGETARCH", architecture())];
    more.extend(arguments);
    // What was installed is there already: nothing is to be fetched.
    build(engine, "prebuilt", &context, "none", &more, NAME).map_err(refused)?;
    Ok(NAME)
}

/// Path of the file with all but the program.
fn runtime(engine: &Engine) -> Result<PathBuf, ServerError> {
    let base = image::made()?;
    let text = fs::read_to_string(dockerfile()).map_err(cannot_start)?;
    let mut hasher = DefaultHasher::new();
    (text, base.file_name(), installed()?).hash(&mut hasher);
    image::keep(PREFIX, hasher.finish(), |folder| {
        let made = || {
            engine.try_docker(&["import", &base.display().to_string(), BASE])?;
            let context = folder.join("context");
            fs::create_dir(&context).map_err(|error| error.to_string())?;
            build(engine, "runtime", &context, "host", &[], RUNTIME)?;
            engine.try_docker(&["save", "--output", &folder.join("image.tar").display().to_string(), RUNTIME, BASE]).map(drop)
        };
        made().map_err(|said| cannot_start(io::Error::other(said)))
    })
}

/// The major of the distribution's own PostgreSQL.
fn installed() -> Result<String, ServerError> {
    let programs = distribution()?;
    let major = programs.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    major.map(str::to_string).ok_or_else(|| cannot_start(io::Error::other(format!("`{}` does not say its version", programs.display()))))
}

fn build(engine: &Engine, target: &str, context: &Path, network: &str, more: &[(&str, &str)], name: &str) -> Result<(), String> {
    let major = installed().map_err(|error| format!("{error:?}"))?;
    let fixed = [("DEBIAN_IMAGE", BASE), ("PGDG", "no"), ("CLIENTS", &major), ("SERVER", &major)];
    let pairs: Vec<_> = fixed.iter().chain(more).map(|(name, value)| format!("{name}={value}")).collect();
    let file = dockerfile().display().to_string();
    let network = format!("--network={network}");
    let mut all = vec!["build", "--quiet", &network, "--file", &file, "--target", target, "--cache-from", RUNTIME, "--tag", name];
    all.extend(pairs.iter().flat_map(|pair| ["--build-arg", pair]));
    let context = context.display().to_string();
    all.push(&context);
    engine.try_docker(&all).map(drop)
}
