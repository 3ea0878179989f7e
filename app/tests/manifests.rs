//! What policy tools do not say of deploy/kubernetes: that its names, command lines and exit codes are the program's, and that its parts fit together.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr, reason = "a test may")]

#[path = "support/immich.rs"]
mod immich;
#[path = "support/rendered.rs"]
mod rendered;
mod support;

use immich::Immich;
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use immich_backup_testbed::postgres::Postgres;
use immich_backup_testbed::servers::installed;
use rendered::{Objects, arguments, deploy, documents, environment, folders, program_of, texts};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Running, program};

type Secrets = BTreeMap<String, BTreeMap<String, String>>;

/// What is only said here, so that it is found where it must not be.
const SECRET: &str = "a-secret-that-shows";

/// Each overlay, and each component on top of one, by name.
fn all() -> Vec<(String, Objects)> {
    let overlays = folders("overlays").into_iter().map(|name| {
        let objects = Objects::of_overlay(&name);
        (name, objects)
    });
    let components = folders("components").into_iter().filter(|name| name != "prometheus");
    overlays.chain(components.map(|name| (format!("prod with {name}"), Objects::with_component("prod", &name)))).collect()
}

fn secret(keys: &[&str]) -> BTreeMap<String, String> {
    keys.iter().map(|key| ((*key).to_owned(), format!("{SECRET}-{}", key.to_lowercase()))).collect()
}

/// Secrets that have all that manifests may ask for.
fn secrets() -> Secrets {
    let keys = ["DB_PASSWORD", "GCS_CREDENTIALS", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let database: BTreeMap<_, _> = [("host", "immich-database-rw"), ("port", "5432"), ("username", "immich"), ("dbname", "immich"), ("password", SECRET)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    [("backup-secrets", secret(&keys)), ("prune-secrets", secret(&keys[1..])), ("immich-database-app", database)].map(|(name, keys)| (name.to_owned(), keys)).into()
}

fn document(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)).unwrap()
}

/// Names of the environment, as documents have them between backticks.
fn names(text: &str) -> BTreeSet<String> {
    let parts = text.split('`').skip(1).step_by(2);
    let is_name = |part: &&str| part.contains('_') && part.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    parts.filter(is_name).map(str::to_owned).collect()
}

#[test]
fn every_name_in_a_pods_environment_is_one_that_the_program_reads() {
    // The tables are compared with the program by tests of their own.
    let mut known = names(&document("docs/configuration.md"));
    known.extend(names(&document("docs/stores.md")));
    known.insert("TZ".to_owned());
    assert!(known.len() > 60, "{known:?}");
    let mut unknown = BTreeSet::new();
    for (set, objects) in all() {
        for (pod, template) in objects.pods() {
            let environment = environment(program_of(template), &objects.config(), &secrets());
            unknown.extend(environment.into_keys().filter(|name| !known.contains(name)).map(|name| format!("{set}: {pod}: {name}")));
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn every_command_line_is_understood_and_finds_in_its_environment_what_is_said_there() {
    let mut seen = BTreeSet::new();
    for (set, objects) in all() {
        for (pod, template) in objects.pods() {
            let container = program_of(template);
            let environment = environment(container, &objects.config(), &secrets());
            let arguments = arguments(container, &environment);
            let mut command = program();
            command.args(&arguments).arg("--show-config").envs(&environment);
            let told = Running::start(command).wait().ended(0);
            for (name, value) in environment.iter().filter(|(_, value)| !value.is_empty()) {
                let line = told.out.lines().find(|line| line.ends_with(&format!("environment: {name}")));
                assert!(line.is_none_or(|line| line.contains(value.as_str())), "{set}: {pod}: {name}={value}\n{}", told.out);
                // These are settings of each command that is given them.
                if name == "IMMICH_BACKUP_STATE_DIR" || name == "IMMICH_BACKUP_LIBRARY" || name == "DB_HOSTNAME" && arguments[0] != "restore" {
                    assert!(line.is_some(), "{set}: {pod}: {name}\n{}", told.out);
                }
            }
            assert!(!told.out.contains(SECRET) && !told.err.contains(SECRET), "{set}: {pod}: {}", told.told());
            seen.insert(arguments.join(" "));
        }
    }
    for command in [
        "backup --init",
        "verify --proof --read-data",
        "prune",
        "doctor",
        "drill",
        "drill --database=postgres://drill@127.0.0.1:5432/drill",
        "daemon --init --proof --read-data",
        "restore --to=/library --database=postgres://immich@immich-database:5432/immich",
        "restore --to=/library --database=postgres://immich@immich-database-rw:5432/immich",
    ] {
        assert!(seen.remove(command), "{command}: {seen:#?}");
    }
    assert!(seen.is_empty(), "{seen:#?}");
}

/// The program's exit codes, as it says them itself.
fn exit_codes() -> BTreeSet<i64> {
    let help = Running::start({
        let mut command = program();
        command.args(["backup", "--help"]);
        command
    });
    let help = help.wait().ended(0).out;
    help.split("Exit codes:").nth(1).unwrap().lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

#[test]
fn what_a_second_try_would_not_change_is_not_tried_again() {
    // Failed and interrupted: these may be better in a minute.
    let final_codes: BTreeSet<i64> = exit_codes().into_iter().filter(|code| ![0, 1, 130].contains(code)).collect();
    assert_eq!(final_codes.len(), 6, "{final_codes:?}");
    for (set, objects) in all() {
        for job in objects.of_kind("CronJob") {
            let name = format!("{set}: {}", job["metadata"]["name"]);
            let spec = &job["spec"]["jobTemplate"]["spec"];
            let rules = spec["podFailurePolicy"]["rules"].as_array().unwrap();
            let (ignored, failed): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| rule["action"] == "Ignore");
            assert_eq!(ignored, [&json!({ "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] })], "{name}");
            let codes: Vec<i64> = failed.iter().flat_map(|rule| rule["onExitCodes"]["values"].as_array().unwrap()).map(|code| code.as_i64().unwrap()).collect();
            assert_eq!((codes.len(), codes.into_iter().collect::<BTreeSet<_>>()), (final_codes.len(), final_codes.clone()), "{name}");
            assert!(failed.iter().all(|rule| rule["onExitCodes"]["containerName"] == "immich-backup" && rule["onExitCodes"]["operator"] == "In"), "{name}");
            // An action on an index takes a limit for each.
            let by_index = failed.iter().any(|rule| rule["action"] == "FailIndex");
            assert_eq!((by_index, spec["completionMode"] == "Indexed"), (!spec["backoffLimitPerIndex"].is_null(), by_index), "{name}");
            assert_eq!(spec["template"]["spec"]["restartPolicy"], "Never", "{name}: the policy demands it");
            assert_eq!(job["spec"]["concurrencyPolicy"], "Forbid", "{name}");
            assert!(spec["activeDeadlineSeconds"].as_i64().unwrap() > 0, "{name}");
        }
    }
}

#[test]
fn jobs_begin_when_a_schedule_says_so_and_templates_never() {
    for (set, objects) in all() {
        let config = objects.config();
        let mut times = BTreeSet::new();
        for job in objects.of_kind("CronJob") {
            let (name, spec) = (job["metadata"]["name"].as_str().unwrap(), &job["spec"]);
            let schedule = spec["schedule"].as_str().unwrap();
            assert_eq!(spec["timeZone"].as_str(), Some(config["time_zone"].as_str()));
            jiff::tz::TimeZone::get(&config["time_zone"]).unwrap();
            let key = match name {
                "immich-backup" => "schedule",
                "immich-backup-verify" => "verify_schedule",
                "immich-backup-drill" => "drill_schedule",
                "immich-backup-prune" => "prune_schedule",
                _ => {
                    // No year has this day, and it is suspended besides.
                    assert_eq!((schedule, &spec["suspend"]), ("0 0 31 2 *", &Value::Bool(true)), "{set}: {name}");
                    continue;
                }
            };
            assert_eq!(schedule, config[key], "{set}: {name}");
            let cron: croner::Cron = schedule.parse().unwrap_or_else(|error| panic!("{set}: {name}: {schedule}: {error}"));
            let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
            let next = cron.find_next_occurrence(&now, false).unwrap();
            let after = cron.find_next_occurrence(&next, false).unwrap();
            let apart = after.timestamp().as_second() - next.timestamp().as_second();
            assert!(spec["startingDeadlineSeconds"].as_i64().unwrap() < apart, "{set}: {name}: a start that is so late is the next one's");
            if name == "immich-backup" {
                assert!(spec["jobTemplate"]["spec"]["activeDeadlineSeconds"].as_i64().unwrap() < apart, "{set}: one that hangs stands in the next one's way");
            }
            assert!(times.insert((next.hour(), next.minute())), "{set}: {name} begins with another");
        }
        assert_eq!(times.len(), 4, "{set}");
    }
}

#[test]
fn one_line_of_the_configuration_reaches_every_place_that_it_means_in_every_overlay() {
    for overlay in folders("overlays") {
        let objects = Objects::of(&format!(
            "namespace: immich\nresources: [../{overlay}]\ntransformers: [../../wiring]\npatches:\n- patch: |\n    apiVersion: v1\n    kind: ConfigMap\n    \
             metadata: {{ name: backup-config }}\n    data: {{ schedule: 17 4 * * *, time_zone: Asia/Tokyo, library_claim: photos, shards: \"7\" }}\n"
        ));
        let jobs = objects.of_kind("CronJob");
        assert_eq!(objects.get("CronJob", "immich-backup")["spec"]["schedule"], "17 4 * * *", "{overlay}");
        assert!(jobs.iter().all(|job| job["spec"]["timeZone"] == "Asia/Tokyo"), "{overlay}");
        let claims = |template: &Value| -> Vec<String> {
            let volumes = template["spec"]["volumes"].as_array().unwrap();
            volumes.iter().filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str()).map(str::to_owned).collect()
        };
        let with: Vec<_> = objects.pods().into_iter().filter(|(_, template)| !claims(template).is_empty()).map(|(name, template)| (name, claims(template))).collect();
        let expected = ["immich-backup", "immich-backup-doctor", "immich-backup-manual", "immich-backup-restore"];
        assert_eq!(with, expected.map(|name| (name.to_owned(), vec!["photos".to_owned()])), "{overlay}");
        let job = &objects.get("CronJob", "immich-backup")["spec"]["jobTemplate"]["spec"];
        assert_eq!((&job["completions"], &job["parallelism"]), (&json!(7), &json!(7)), "{overlay}");
    }
}

#[test]
fn shards_are_as_many_as_the_configuration_says_and_know_their_run_by_the_job() {
    let objects = Objects::of_overlay("sharded");
    let shards = objects.config()["shards"].clone();
    let spec = &objects.get("CronJob", "immich-backup")["spec"]["jobTemplate"]["spec"];
    assert!(shards.parse::<i64>().unwrap() > 1);
    assert_eq!((spec["completions"].to_string(), spec["parallelism"].to_string(), &spec["completionMode"]), (shards.clone(), shards.clone(), &json!("Indexed")));
    let environment = environment(program_of(&spec["template"]), &objects.config(), &secrets());
    assert_eq!((&environment["IMMICH_BACKUP_SHARD"], environment["IMMICH_BACKUP_RUN_ID"].len()), (&shards, 36));
    // Nothing that only one of them could have.
    assert!(spec["template"]["spec"]["affinity"].is_null());
    // All others are whole.
    for overlay in ["prod", "gke", "s3"] {
        let objects = Objects::of_overlay(overlay);
        let spec = &objects.get("CronJob", "immich-backup")["spec"]["jobTemplate"]["spec"];
        assert_eq!((&spec["completions"], &spec["parallelism"], &spec["completionMode"]), (&json!(1), &json!(1), &Value::Null), "{overlay}");
    }
}

#[test]
fn everything_is_found_by_one_label_in_one_namespace_with_one_version() {
    let version = format!("ghcr.io/immich-backup/immich-backup:{}", env!("CARGO_PKG_VERSION"));
    for (set, objects) in all() {
        for object in &objects.0 {
            let metadata = &object["metadata"];
            assert_eq!((&metadata["labels"]["app"], &metadata["namespace"]), (&json!("immich-backup"), &json!("immich")), "{set}: {object}");
            // `kubectl create job --from` takes the labels of jobs from here.
            if object["kind"] == "CronJob" {
                assert_eq!(object["spec"]["jobTemplate"]["metadata"]["labels"]["app"], "immich-backup", "{set}: {object}");
            }
        }
        for (name, template) in objects.pods() {
            let labels = &template["metadata"]["labels"];
            assert_eq!((&labels["app"], &labels["app.kubernetes.io/name"]), (&json!("immich-backup"), &json!("immich-backup")), "{set}: {name}");
            assert!(labels["app.kubernetes.io/component"].is_string(), "{set}: {name}");
            assert_eq!(program_of(template)["image"], version, "{set}: {name}");
        }
        let policy = objects.get("NetworkPolicy", "immich-backup");
        assert_eq!(policy["spec"]["podSelector"], json!({ "matchLabels": { "app": "immich-backup" } }), "{set}");
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]), "{set}");
    }
}

#[test]
fn pods_may_no_more_than_the_restricted_profile_allows_and_write_nowhere_but_to_their_own() {
    for (set, objects) in all() {
        for (name, template) in objects.pods() {
            let (shown, spec) = (format!("{set}: {name}"), &template["spec"]);
            let context = &spec["securityContext"];
            assert_eq!((&context["runAsNonRoot"], &context["seccompProfile"]["type"]), (&json!(true), &json!("RuntimeDefault")), "{shown}");
            assert_eq!((&spec["automountServiceAccountToken"], &spec["enableServiceLinks"]), (&json!(false), &json!(false)), "{shown}");
            for key in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(spec[key].is_null(), "{shown}: {key}");
            }
            let volumes = spec["volumes"].as_array().unwrap();
            let kinds: BTreeSet<&str> = volumes.iter().flat_map(|volume| volume.as_object().unwrap().keys()).map(String::as_str).filter(|key| *key != "name").collect();
            let mut allowed = BTreeSet::from(["configMap", "emptyDir", "persistentVolumeClaim"]);
            if set.contains("metrics-textfile") {
                allowed.insert("hostPath");
            }
            assert!(kinds.is_subset(&allowed), "{shown}: {kinds:?}");
            let all = spec["containers"].as_array().unwrap().iter().chain(spec["initContainers"].as_array().into_iter().flatten());
            for container in all {
                let context = &container["securityContext"];
                assert_eq!(
                    (&context["allowPrivilegeEscalation"], &context["capabilities"], &context["readOnlyRootFilesystem"]),
                    (&json!(false), &json!({ "drop": ["ALL"] }), &json!(true)),
                    "{shown}"
                );
                for resource in ["memory", "cpu", "ephemeral-storage"] {
                    assert!(container["resources"]["limits"][resource].is_string() && container["resources"]["requests"][resource].is_string(), "{shown}: {resource}");
                }
                let mounts = container["volumeMounts"].as_array().unwrap();
                for mount in mounts {
                    assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "{shown}: {mount}");
                }
                // The volume as a whole, too: no kubelet may change groups on it.
                for mount in mounts.iter().filter(|mount| mount["mountPath"] == "/library" && !name.ends_with("-restore")) {
                    let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
                    assert_eq!((&mount["readOnly"], &volume["persistentVolumeClaim"]["readOnly"]), (&json!(true), &json!(true)), "{shown}");
                }
            }
        }
    }
}

#[test]
fn who_may_delete_and_who_writes_have_nothing_in_common() {
    for (set, objects) in all() {
        for (name, template) in objects.pods() {
            let text = template.to_string();
            let prunes = name == "immich-backup-prune";
            assert_eq!(text.contains("prune-secrets"), prunes, "{set}: {name}");
            assert_eq!(text.contains("backup-secrets"), !prunes, "{set}: {name}");
            let account = if prunes { "immich-backup-prune" } else { "immich-backup" };
            assert_eq!(template["spec"]["serviceAccountName"], account, "{set}: {name}");
            objects.get("ServiceAccount", account);
            // A backup that is told how many dumps to keep would try to delete.
            let environment = environment(program_of(template), &objects.config(), &secrets());
            assert_eq!(environment.contains_key("DB_BACKUP_RETENTION"), prunes, "{set}: {name}");
        }
    }
    let annotation = |set: &str, objects: &Objects, account: &str, key: &str| {
        let found = objects.get("ServiceAccount", account)["metadata"]["annotations"][key].as_str().map(str::to_owned);
        found.unwrap_or_else(|| panic!("{set}: {account} has no {key}"))
    };
    let eks = Objects::with_component("s3", "eks");
    for (set, objects, key) in [("gke", &Objects::of_overlay("gke"), "iam.gke.io/gcp-service-account"), ("eks", &eks, "eks.amazonaws.com/role-arn")] {
        assert_ne!(annotation(set, objects, "immich-backup", key), annotation(set, objects, "immich-backup-prune", key), "{set}");
    }
}

#[test]
fn the_drills_database_is_made_as_the_manifest_says_and_takes_all_of_a_real_dump() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let server = Postgres::start().unwrap();
    let mut immich = Immich::new(fixture, &server);
    immich.backup(&[]).ended(0);
    let objects = Objects::of_overlay("prod");
    let drill = objects.pods().into_iter().find(|(name, _)| name == "immich-backup-drill").unwrap().1;
    // As the image's entry point does it: each file of the folder, by the superuser, with psql.
    let volume = drill["spec"]["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "postgres-init").unwrap();
    let data = objects.get("ConfigMap", volume["configMap"]["name"].as_str().unwrap())["data"].as_object().unwrap();
    assert_eq!(data.keys().map(String::as_str).collect::<Vec<_>>(), ["drill.sql"]);
    let file = immich.world.at("drill.sql");
    fs::write(&file, data["drill.sql"].as_str().unwrap()).unwrap();
    let mut psql = Command::new(server.programs().join("psql"));
    psql.args(["-v", "ON_ERROR_STOP=1", "--no-psqlrc", "--dbname", &server.url("postgres"), "--file"]).arg(&file);
    Running::start(psql).wait().ended(0);
    // A test's server asks for passwords, the sidecar does not: nobody else reaches it.
    server.psql("postgres", "ALTER ROLE drill PASSWORD 'of-the-test'");
    let rights = server.psql("postgres", "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls FROM pg_roles WHERE rolname = 'drill'");
    assert_eq!(rights.trim(), "f");
    let before = server.rows("immich");

    let sidecar = &drill["spec"]["initContainers"][0];
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert!(texts(&sidecar["args"]).contains(&"-clisten_addresses=127.0.0.1"));
    let probe = texts(&sidecar["startupProbe"]["exec"]["command"]);
    let mut ready = Command::new(server.programs().join(probe[0]));
    ready.args(&probe[1..]).env("PGPORT", server.port().to_string());
    Running::start(ready).wait().ended(0);
    let container = program_of(drill);
    let environment = environment(container, &objects.config(), &secrets());
    let arguments: Vec<_> = arguments(container, &environment).into_iter().map(|text| text.replace(":5432/", &format!(":{}/", server.port()))).collect();
    immich.world.environment.push(("PGPASSWORD".to_owned(), "of-the-test".to_owned()));
    let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
    all.extend(["--json", "--sample", "100%", "--postgres-programs", server.programs().to_str().unwrap()]);
    let told = immich.world.run(&all).ended(0).summary();
    assert_eq!(
        (&told["verdict"], &told["assets"], &told["sampled"], &told["problem_count"], &told["as_text"]),
        (&json!("passed"), &json!(93), &json!(93), &json!(0), &json!([])),
        "{told}"
    );
    assert_eq!(server.rows("immich"), before);
    // And it can be done again.
    assert_eq!(immich.world.run(&all).ended(0).summary()["verdict"], "passed");
}

/// What an implementation of SOPS that is not ours makes of an encrypted file, with the key of the tests.
fn decrypted(name: &str) -> Value {
    let mut command = support::clean(Command::new(installed("sops").unwrap()));
    let key = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded/kubernetes/example.agekey");
    command.args(["decrypt", "--disable-version-check"]).arg(deploy("kubernetes/secrets").join(name)).env("SOPS_AGE_KEY_FILE", key);
    let mut found = documents(&Running::start(command).wait().ended(0).out);
    assert_eq!(found.len(), 1);
    found.remove(0)
}

fn of_secret(object: &Value) -> BTreeMap<String, String> {
    object["stringData"].as_object().unwrap().iter().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect()
}

#[test]
fn the_encrypted_secrets_hold_what_the_pods_ask_for_and_show_none_of_it() {
    let decrypted: Secrets = ["backup-secrets", "prune-secrets"]
        .map(|name| {
            let object = decrypted(&format!("{name}.enc.yaml"));
            assert_eq!((&object["kind"], &object["metadata"]["name"], &object["metadata"]["namespace"]), (&json!("Secret"), &json!(name), &json!("immich")));
            (name.to_owned(), of_secret(&object))
        })
        .into();
    for (name, secret) in &decrypted {
        let file = deploy("kubernetes/secrets").join(format!("{name}.enc.yaml"));
        let text = fs::read_to_string(&file).unwrap();
        for (key, value) in secret {
            assert!(text.contains(&format!("{key}: ENC[AES256_GCM,")) && !text.contains(value.as_str()), "{}: {key}", file.display());
        }
        // Without the key of one's own, a change shows.
        let keys: BTreeSet<&str> = secret.keys().map(String::as_str).collect();
        let all = BTreeSet::from(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "GCS_BUCKET", "GCS_CREDENTIALS"]);
        assert!(keys.is_subset(&all), "{keys:?}");
    }
    assert_ne!(decrypted["backup-secrets"]["AWS_SECRET_ACCESS_KEY"], decrypted["prune-secrets"]["AWS_SECRET_ACCESS_KEY"]);
    // Every key that a pod cannot do without is there.
    let objects = Objects::of_overlay("prod");
    for (_, template) in objects.pods() {
        environment(program_of(template), &objects.config(), &decrypted);
    }
    // Flux decrypts both, before it applies what names them, with what it has as `age.agekey` in `sops-age`.
    let flux = Objects::at(&deploy("flux"));
    let by_name = |name: &str| flux.get("Kustomization", name)["spec"].clone();
    let (first, second) = (by_name("immich-backup-secrets"), by_name("immich-backup"));
    assert_eq!(first["decryption"], json!({ "provider": "sops", "secretRef": { "name": "sops-age" } }));
    assert_eq!(second["dependsOn"], json!([{ "name": "immich-backup-secrets" }]));
    for spec in [first, second] {
        let path = deploy("..").join(spec["path"].as_str().unwrap().trim_start_matches("./"));
        assert!(path.join("kustomization.yaml").exists(), "{}", path.display());
        assert_eq!(spec["sourceRef"]["name"], flux.of_kind("GitRepository")[0]["metadata"]["name"]);
    }
}

#[test]
fn the_program_starts_with_what_was_decrypted_and_backs_up_the_database_with_it() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let server = Postgres::start().unwrap();
    let immich = Immich::new(fixture, &server);
    let secret = of_secret(&decrypted("backup-secrets.enc.yaml"));
    server.create_role("immich", &secret["DB_PASSWORD"], "SUPERUSER");
    let secrets: Secrets = [("backup-secrets".to_owned(), secret.clone())].into();

    let started = |overlay: &str, job: &str, more: &[(&str, String)], arguments_more: &[&str]| {
        let objects = Objects::of_overlay(overlay);
        let template = objects.pods().into_iter().find(|(name, _)| name == job).unwrap().1;
        let mut config = objects.config();
        for (key, value) in [("db_hostname", "127.0.0.1".to_owned()), ("db_port", server.port().to_string())].into_iter().chain(more.iter().cloned()) {
            assert!(config.insert(key.to_owned(), value).is_some(), "{key}");
        }
        let container = program_of(template);
        let mut environment = environment(container, &config, &secrets);
        let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
        // What the pod has mounted there.
        environment.insert("IMMICH_BACKUP_LIBRARY".to_owned(), path(&immich.world.library));
        environment.insert("IMMICH_BACKUP_STATE_DIR".to_owned(), path(&immich.world.state));
        environment.insert("IMMICH_BACKUP_POSTGRES_PROGRAMS".to_owned(), path(&server.programs().to_owned()));
        let mut command = program();
        command.args(arguments(container, &environment)).args(arguments_more).envs(&environment);
        let ran = Running::start(command).wait();
        for (key, value) in secret.iter().filter(|(key, _)| !["AWS_ACCESS_KEY_ID", "GCS_BUCKET"].contains(&key.as_str())) {
            assert!(!ran.out.contains(value.as_str()) && !ran.err.contains(value.as_str()), "{key} shows:\n{}", ran.told());
        }
        ran
    };

    // The bucket is the secret's, and so is the key; being an example, it opens nothing.
    let doctor = started("prod", "immich-backup-doctor", &[], &["--retries", "0"]).ended(1);
    let doctor = doctor.says("service account's key in GCS_CREDENTIALS").says("ok   database");
    assert!(doctor.out.contains("the key in GCS_CREDENTIALS cannot be used"), "{}", doctor.told());
    let nobody = ("repository", "s3://my-immich-backup/immich?endpoint=http://127.0.0.1:9&region=none".to_owned());
    started("s3", "immich-backup-doctor", &[nobody], &["--retries", "0"]).ended(1).says("key EXAMPLEWRITER from EnvironmentVariable");
    // Its external library is not mounted: exit code 3, and each asset in the library proven.
    let folder = [("repository", immich.world.repository.to_str().unwrap().to_owned()), ("storage_class", String::new())];
    let backup = started("gke", "immich-backup", &folder, &["--json"]).ended(3);
    assert_eq!((backup.number("/proof/proven"), backup.number("/proof/missing"), backup.number("/proof/outside")), (93, 0, 4));
}
