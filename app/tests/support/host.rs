//! A host with Immich's Compose stack: the program run against its engine, and what of the stack is up.

#![allow(dead_code, reason = "each test program uses its part of this")]

use crate::support::{Ran, Running, World};
use immich_backup_testbed::compose::Stack;
use immich_backup_testbed::docker::Engine;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

pub struct Host {
    pub world: World,
    pub docker: String,
}

/// State and health of each service; not when it was started.
pub fn ups(stack: &Stack<'_>) -> BTreeMap<String, (String, Option<String>)> {
    stack.states().into_iter().map(|(service, state)| (service, (state.status, state.health))).collect()
}

impl Host {
    pub fn new(engine: &Engine) -> Self {
        Self { world: World::new(), docker: engine.host() }
    }

    pub fn services_command(&self, arguments: &[&str]) -> Command {
        let mut all = vec!["services"];
        all.extend(arguments);
        all.extend(["--json", "--docker-host", &self.docker]);
        self.world.command(&all)
    }

    /// `immich-backup services …`
    pub fn services(&self, arguments: &[&str]) -> Ran {
        Running::start(self.services_command(arguments)).wait()
    }

    /// Arguments of a backup of `stack`, with its services stopped.
    pub fn backup_arguments(&self, stack: &Stack<'_>) -> Vec<String> {
        let external = format!("nas={}:/mnt/external", stack.external().display());
        let arguments =
            ["--json", "--init", "--stop-services", "--docker-host", &self.docker, "--database-container", "immich_postgres", "--external", &external];
        arguments.map(str::to_owned).to_vec()
    }

    pub fn backup_command(&self, stack: &Stack<'_>, more: &[&str]) -> Command {
        let mut all = vec!["backup".to_owned(), "--library".to_owned(), stack.media().display().to_string()];
        all.extend(self.backup_arguments(stack));
        all.extend(more.iter().map(|word| (*word).to_owned()));
        self.world.command(&all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// `immich-backup backup --stop-services …`
    pub fn backup(&self, stack: &Stack<'_>, more: &[&str]) -> Ran {
        Running::start(self.backup_command(stack, more)).wait()
    }

    pub fn journal(&self) -> PathBuf {
        self.world.state.join("services/immich.json")
    }

    /// The journal's phase; `None` where there is no journal.
    pub fn phase(&self) -> Option<String> {
        let text = std::fs::read(self.journal()).ok()?;
        let journal: serde_json::Value = serde_json::from_slice(&text).unwrap();
        Some(journal["phase"].as_str().unwrap().to_owned())
    }

    /// Ends the process that watches over a run, and nothing else: known by its arguments, and by this test's own folder among them.
    pub fn end_watcher(&self) {
        let own = self.world.state.display().to_string();
        let mut ended = 0;
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(arguments) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let arguments: Vec<_> = arguments.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            if arguments.get(2).is_some_and(|word| word == "watch") && arguments.contains(&own) {
                let pid = entry.file_name().to_str().unwrap().parse().unwrap();
                rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
                ended += 1;
            }
        }
        assert_eq!(ended, 1, "there is one watcher");
    }

    pub fn watcher_log(&self) -> String {
        std::fs::read_to_string(self.world.state.join("services/immich.watcher.log")).unwrap_or_default()
    }

    /// Services in the order in which they were stopped.
    pub fn stopped(&self, ran: &Ran) -> Vec<String> {
        ran.events("service_stopped").iter().map(|event| event["service"].as_str().unwrap().to_owned()).collect()
    }

    /// Services in the order in which they were started.
    pub fn started(&self, ran: &Ran) -> Vec<String> {
        ran.events("service_started").iter().map(|event| event["service"].as_str().unwrap().to_owned()).collect()
    }
}
