//! What deploy/terraform allows is what docs/stores.md says, what `init` prints and what `prune` removes; what its README says of costs is what the
//! program's prices come to. Read as text: whether the providers take it is for those who apply it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;
#[path = "support/terraform.rs"]
mod terraform;

use immich_backup_core::estimate::prices::{ClassPrices, PRICES_AS_OF, Tariff};
use immich_backup_core::estimate::{Contents, GB, Money, first_year};
use immich_backup_core::library::layout::class_of;
use immich_backup_core::model::{Class, FilePath, RootPath};
use immich_backup_core::repository::key::{DUMPS, LOG, MANIFESTS};
use immich_backup_core::repository::storage_class::StorageClass;
use immich_backup_core::repository::vendor::Vendor;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use support::{FOLDERS, Running, World, program};
use terraform::{Terraform, sources, texts};

/// What `init --dry-run --json` says of privileges for a place.
fn privileges(url: &str) -> Value {
    let mut command = program();
    command.args(["init", "--dry-run", "--json", "-r", url]);
    Running::start(command).wait().ended(0).summary()["privileges"].clone()
}

fn set(texts: impl IntoIterator<Item = impl Into<String>>) -> BTreeSet<String> {
    texts.into_iter().map(Into::into).collect()
}

#[test]
fn the_writer_of_s3_has_the_policy_that_init_prints() {
    let printed = privileges("s3://pictures/immich?region=eu-central-1");
    let printed: Vec<Value> = printed["document"]["Statement"].as_array().unwrap().clone();
    let s3 = Terraform::open("s3");
    let document = s3.block("data \"aws_iam_policy_document\" \"writer\"");
    // And one for a key of one's own, which `init` cannot know of.
    assert_eq!((printed.len(), document.text().matches("sid ").count()), (3, 4));
    for statement in printed {
        let ours = s3.statement("writer", statement["Sid"].as_str().unwrap());
        let actions = match &statement["Action"] {
            Value::String(action) => vec![action.clone()],
            actions => serde_json::from_value(actions.clone()).unwrap(),
        };
        assert_eq!(ours.texts("actions"), actions, "{statement}");
        let objects = "\"${local.objects}*\"";
        let (resource, effect) = (ours.value("resources"), if ours.text().contains("effect    = \"Deny\"") { "Deny" } else { "Allow" });
        match statement["Resource"].as_str().unwrap() {
            "arn:aws:s3:::pictures" => assert_eq!(resource, "[aws_s3_bucket.repository.arn]"),
            "arn:aws:s3:::pictures/immich/*" => assert_eq!(resource, format!("[{objects}]")),
            other => panic!("{other}"),
        }
        assert_eq!(statement["Effect"], effect);
        let conditions = statement["Condition"].as_object().cloned().unwrap_or_default();
        assert_eq!(ours.text().matches("variable =").count(), conditions.len(), "{}", ours.text());
        for (test, variables) in conditions {
            for (variable, value) in variables.as_object().unwrap() {
                let value = if variable == "s3:prefix" { "[condition.value]".to_owned() } else { format!("[{value}]") };
                let parts = [format!("test     = \"{test}\""), format!("variable = \"{variable}\""), format!("values   = {value}")];
                let lines: Vec<_> = ours.text().lines().map(str::trim).collect();
                assert!(lines.windows(3).any(|lines| lines == parts), "{parts:?}\n{}", ours.text());
            }
        }
    }
    assert!(document.text().contains("for_each = var.prefix == \"\" ? [] : [\"${local.root}*\"]"), "the condition of a prefix is for a prefix");
    // The bucket's own policy says the same to everybody.
    let (own, everybody) = (s3.statement("writer", "NeverOverwrite"), s3.statement("bucket", "NeverOverwrite"));
    for line in own.text().lines() {
        assert!(everybody.text().contains(line), "{line}");
    }
    assert_eq!((own.text(), s3.statement("pruner", "NeverOverwrite").text()), (own.text(), own.text()));
}

#[test]
fn the_writer_of_google_has_the_roles_and_the_condition_that_init_prints() {
    let printed = privileges("gs://pictures/immich");
    let commands: Vec<&str> = printed["commands"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let role = |command: &&str| command.split_once("--role=").map(|(_, rest)| rest.split(' ').next().unwrap().to_owned());
    let gcs = Terraform::open("gcs");
    let writer = gcs.block("resource \"google_storage_bucket_iam_member\" \"writer\"");
    assert_eq!(set(writer.texts("for_each")), set(commands.iter().filter_map(role)));
    assert!(writer.text().contains("for_each = var.prefix == \"\" ? [] : [local.within_prefix]") && writer.text().contains("expression = condition.value"));
    let expression = gcs.value("within_prefix").trim_matches('"').replace("\\\"", "\"");
    let expression = expression
        .replace("${jsonencode(local.objects)}", "\"projects/_/buckets/pictures/objects/immich/\"")
        .replace("${jsonencode(local.root)}", "\"immich/\"");
    assert_eq!(printed["document"]["expression"], json!(expression));
    assert_eq!(gcs.value("objects"), "\"projects/_/buckets/${var.bucket}/objects/${local.root}\"");
    assert_eq!(gcs.value("root"), "var.prefix == \"\" ? \"\" : \"${var.prefix}/\"");
}

/// The rights in the row of `command` of docs/stores.md, for S3 and for Google.
fn documented(command: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let text = fs::read_to_string(sources().join("docs/stores.md")).unwrap();
    let section = text.split_once("\n### Each command").unwrap().1.split("\n## ").next().unwrap().to_owned();
    let row = section.lines().find(|line| line.starts_with('|') && line.split('|').nth(1).unwrap().contains(&format!("`{command}`"))).unwrap().to_owned();
    let rights = |cell: usize, start: &str| {
        let cell = row.split('|').nth(cell).unwrap();
        set(cell.split('`').skip(1).step_by(2).filter(|word| word.starts_with(start)))
    };
    (rights(2, "s3:"), rights(3, "storage."))
}

/// What Google's roles let do with objects: <https://cloud.google.com/storage/docs/access-control/iam-roles>.
fn of_role(role: &str) -> &'static [&'static str] {
    match role {
        "roles/storage.objectCreator" => &["storage.objects.create"],
        "roles/storage.objectViewer" => &["storage.objects.get", "storage.objects.list"],
        other => panic!("`{other}` is not known here"),
    }
}

#[test]
fn rights_are_those_of_the_documentation_and_no_others() {
    let (s3, gcs) = (Terraform::open("s3"), Terraform::open("gcs"));
    let actions = |document: &str| {
        let document = s3.block(&format!("data \"aws_iam_policy_document\" \"{document}\""));
        let statements = document.text().split("\n  statement {\n").flat_map(|statement| statement.split("\n  dynamic \"statement\" {\n"));
        let allowing = statements.filter(|statement| !statement.contains("\"Deny\""));
        let lines =
            allowing.flat_map(|statement| statement.lines().filter(|line| line.trim_start().starts_with("actions ")).map(str::to_owned).collect::<Vec<_>>());
        let mut actions = set(lines.flat_map(|line| texts(&line)));
        // Of a key of one's own.
        assert!(actions.remove("kms:GenerateDataKey") && actions.remove("kms:Decrypt"));
        actions
    };
    for (command, document) in [("backup", "writer"), ("verify", "writer"), ("drill", "writer"), ("init", "writer"), ("prune", "pruner")] {
        assert_eq!(actions(document), documented(command).0, "{command}");
    }
    assert!(documented("restore").0.is_subset(&actions("writer")) && documented("restore").1.is_subset(&documented("backup").1));

    let member = |name: &str| gcs.block(&format!("resource \"google_storage_bucket_iam_member\" \"{name}\""));
    let rights = |roles: &[String]| set(roles.iter().flat_map(|role| of_role(role)).copied());
    assert_eq!(rights(&member("writer").texts("for_each")), documented("backup").1);
    let mut pruner = rights(&[member("pruner_reads").texts("role"), member("pruner_logs").texts("role")].concat());
    pruner.extend(gcs.block("resource \"google_project_iam_custom_role\" \"pruner\"").texts("permissions"));
    assert_eq!(pruner, documented("prune").1);
    // Nobody else is given anything.
    assert_eq!(gcs.text().matches("\n  role ").count(), gcs.text().matches("_iam_member\" \"").count());
    assert_eq!(gcs.text().matches("google_storage_bucket_iam_member\" \"").count(), 4);
    assert_eq!(s3.text().matches("local.policies[each.key]").count(), 2);
}

#[test]
fn the_pruner_may_create_log_entries_alone_and_remove_what_prune_removes_alone() {
    let derived_folders: Vec<_> = FOLDERS.iter().filter(|folder| class(&format!("{folder}/u/aa/x")) == Class::Derived).collect();
    let derived = derived_folders.iter().flat_map(|folder| [format!("library/{folder}/"), format!("versions/{folder}/")]);
    let mut expected = set(derived);
    expected.extend([DUMPS.to_owned(), MANIFESTS.to_owned()]);
    assert_eq!(expected.len(), 6);
    let documentation = fs::read_to_string(sources().join("docs/stores.md")).unwrap();
    for name in ["gcs", "s3"] {
        let text = Terraform::open(name);
        let (removed, suffix) = text.removed();
        assert_eq!(set(removed.clone()), expected, "{name}");
        assert!(removed.iter().chain([&suffix]).all(|word| documentation.contains(&format!("`{word}`"))), "docs/stores.md");
        assert_eq!(text.texts("prunable"), [DUMPS, MANIFESTS], "{name}");
        assert_eq!(text.value("removed"), "concat(local.prunable, var.prune_derived ? local.prunable_derived : [])");
        // The only originals below these folders.
        assert_eq!((class(&format!("encoded-video/u/aa/x{suffix}")), class("encoded-video/u/aa/x.mp4")), (Class::Original, Class::Derived), "{name}");
        // What is moved to another class is no derived file, no log entry, no dump.
        let originals = text.texts("originals");
        assert!(originals.iter().all(|start| !removed.iter().any(|other| start.starts_with(other.as_str()) || other.starts_with(start.as_str()))));
        for folder in FOLDERS {
            let moved = originals.contains(&format!("library/{folder}/"));
            assert_eq!(moved, folder != "backups" && class(&format!("{folder}/u/aa/x")) == Class::Original, "{name} {folder}");
        }
    }
    let s3 = Terraform::open("s3");
    assert_eq!(s3.statement("pruner", "Log").value("resources"), format!("[\"${{local.objects}}{LOG}*\", \"${{local.objects}}format.json\"]"));
    assert_eq!(s3.statement("pruner", "Remove").value("resources"), "[for prefix in local.removed : \"${local.objects}${prefix}*\"]");
    let kept = "[\"${local.objects}*${local.kept_suffix}\", \"${local.objects}*${local.kept_suffix}/*\"]";
    assert_eq!((s3.statement("pruner", "NoOriginal").value("resources"), s3.statement("pruner", "NoOriginal").value("effect")), (kept, "\"Deny\""));
    let gcs = Terraform::open("gcs");
    let member = |name: &str| gcs.block(&format!("resource \"google_storage_bucket_iam_member\" \"{name}\""));
    let log = "\"resource.name.startsWith(${jsonencode(\"${local.objects}log/\")}) || resource.name == ${jsonencode(\"${local.objects}format.json\")}\"";
    assert_eq!(member("pruner_logs").value("expression"), log);
    assert_eq!(member("pruner_removes").value("expression"), "\"(${local.removable}) && ${local.no_original}\"");
    // IAM takes twelve of `&&`, `||` and `!` in an expression.
    assert!(expected.len() - 1 + 3 <= 12);
}

fn class(path: &str) -> Class {
    class_of(&FilePath::library(RootPath::parse(path).unwrap()))
}

#[test]
fn no_rule_of_a_bucket_removes_what_the_log_names() {
    let gcs = Terraform::open("gcs");
    let actions: Vec<_> = gcs.text().lines().map(str::trim).filter(|line| line.starts_with("type ") && line.contains("= \"")).collect();
    assert_eq!(actions, ["type = \"AbortIncompleteMultipartUpload\"", "type          = \"SetStorageClass\""]);
    let s3 = Terraform::open("s3");
    let rules = s3.block("resource \"aws_s3_bucket_lifecycle_configuration\" \"repository\"");
    let expirations: Vec<_> = rules.text().split("\n    expiration {\n").skip(1).map(|rest| rest.split_once('}').unwrap().0.trim()).collect();
    assert_eq!(expirations, ["expired_object_delete_marker = true"]);
    // Uploads that were never ended, in both.
    assert_eq!(rules.value("days_after_initiation"), "7");
    assert!(gcs.text().contains("type = \"AbortIncompleteMultipartUpload\"\n    }\n    condition {\n      age = 7\n"), "{}", gcs.text());
}

#[test]
fn a_copy_of_the_manifest_that_a_rule_of_the_bucket_removed_is_called_damage_though_all_else_goes_on() {
    let world = World::new();
    world.pictures(5);
    let first = world.backup(&[]).ended(0);
    let tree = world.tree();
    fs::remove_dir_all(world.repository.join("manifests")).unwrap();
    support::remove(&world.state);
    world.assert_restores(&first.snapshot(), &tree);
    world.run(&["verify", "--listing"]).ended(0);
    world.run(&["verify", "--read-data"]).ended(12).says("manifests/");
}

#[test]
fn classes_are_those_that_the_program_takes() {
    for (name, vendor) in [("gcs", Vendor::Google), ("s3", Vendor::Amazon)] {
        let variable = Terraform::open(name).block("variable \"storage_class\"");
        let condition = variable.value("condition");
        assert_eq!(texts(condition), StorageClass::known(vendor), "{name}");
        assert!(texts(condition).contains(&variable.texts("default")[0]));
    }
}

#[test]
fn names_are_those_of_the_cluster() {
    for name in ["gcs", "s3"] {
        let text = Terraform::open(name);
        assert_eq!(text.block("variable \"namespace\"").value("default"), "\"immich\"");
        for account in ["\"immich-backup\" ", "\"immich-backup-prune\" ", "\"backup-config\"", "backup-secrets", "prune-secrets"] {
            assert!(text.text().contains(account), "{name}: {account}");
        }
    }
}

/// Every name of a variable, a local value, a resource or a data source that is used is one that is declared, and the other way round.
#[test]
fn names_that_are_used_are_declared_and_names_that_are_declared_are_used() {
    for name in ["gcs", "s3"] {
        let text = Terraform::open(name);
        let word = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
        let used = |start: &str| {
            let uses =
                text.text().match_indices(start).filter(|(at, _)| !text.text()[..*at].ends_with(|c: char| c.is_ascii_alphanumeric() || "_.".contains(c)));
            uses.map(|(at, _)| word(&text.text()[at + start.len()..])).collect::<BTreeSet<_>>()
        };
        let declared = |kind: &str| {
            let heads = text.text().lines().filter_map(|line| line.strip_prefix(kind)?.strip_suffix(" {"));
            heads.map(|head| texts(head).join(".")).collect::<BTreeSet<_>>()
        };
        assert_eq!(used("var."), declared("variable "), "{name}");
        let mut locals = BTreeSet::new();
        for block in text.text().split("\nlocals {\n").skip(1) {
            let block = block.split("\n}\n").next().unwrap();
            let lines = block.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
            locals.extend(lines.filter_map(|line| Some(line.split_once(" = ")?.0.trim().to_owned())));
        }
        assert_eq!(used("local."), locals, "{name}");
        let provider = if name == "gcs" { "google_" } else { "aws_" };
        let resources = declared("resource ");
        assert!(resources.len() > 8, "{resources:?}");
        for kind in resources.iter().map(|resource| resource.split_once('.').unwrap().0).collect::<BTreeSet<_>>() {
            for used in used(&format!("{kind}.")) {
                assert!(resources.contains(&format!("{kind}.{used}")), "{name}: {kind}.{used}");
            }
        }
        for used in used("data.aws_iam_policy_document.") {
            assert!(declared("data ").contains(&format!("aws_iam_policy_document.{used}")), "{used}");
        }
        assert!(resources.iter().all(|resource| resource.starts_with(provider)));
    }
}

#[test]
fn outputs_that_the_documents_ask_for_are_there() {
    let mut asked = 0;
    for document in ["deploy/terraform/README.md", "docs/kubernetes.md"].map(|path| sources().join(path)) {
        let (text, mut cloud) = (fs::read_to_string(&document).unwrap(), String::new());
        for line in text.lines() {
            if let Some((_, folder)) = line.split_once("cd deploy/terraform/") {
                folder.split_whitespace().next().unwrap().clone_into(&mut cloud);
            }
            let Some((_, arguments)) = line.split_once("terraform output ") else { continue };
            let Some(name) = arguments.split_whitespace().find(|word| !word.starts_with('-') && !word.starts_with('>')) else { continue };
            let name = name.trim_matches(|letter: char| !letter.is_alphanumeric() && letter != '_');
            let clouds: Vec<_> = if cloud.is_empty() { vec!["gcs", "s3"] } else { vec![cloud.as_str()] };
            let has = |cloud: &&str| Terraform::open(cloud).text().contains(&format!("output \"{name}\""));
            assert!(clouds.iter().any(has), "{}: {clouds:?} has no output `{name}`: {line}", document.display());
            asked += 1;
        }
    }
    assert!(asked >= 4, "{asked}");
}

/// A library of so many TB as the README supposes one.
fn supposed(terabytes: u64) -> Contents {
    let mut contents = Contents::default();
    contents.originals.add_many(250_000 * terabytes, 4_000_000);
    contents.others.add_many(500_000 * terabytes, 100_000);
    contents
}

#[test]
fn costs_in_the_readme_are_what_the_prices_come_to() {
    let readme = fs::read_to_string(sources().join("deploy/terraform/README.md")).unwrap();
    assert!(readme.contains(PRICES_AS_OF) && readme.contains("250,000") && readme.contains("4 MB") && readme.contains("500,000") && readme.contains("100 KB"));
    let mut expected = Vec::new();
    for terabytes in [1, 4] {
        let contents = supposed(terabytes);
        for (vendor, classes) in
            [(Vendor::Google, ["STANDARD", "COLDLINE", "ARCHIVE"].as_slice()), (Vendor::Amazon, &["STANDARD", "STANDARD_IA", "GLACIER_IR"])]
        {
            let tariff = Tariff::of(vendor).unwrap();
            assert!(readme.contains(tariff.source) && readme.contains(tariff.region), "{}", tariff.source);
            let price = |name: &str| -> &ClassPrices { tariff.classes.iter().find(|class| class.name == name).unwrap() };
            let estimate = first_year(vendor, None, &contents).unwrap();
            for name in classes {
                let row = estimate.classes.iter().find(|row| row.class == *name).unwrap();
                let (class, standard) = (price(name), price("STANDARD"));
                let read = Money::of_requests(contents.originals.reads, class.read_1000)
                    + Money::of_bytes(contents.originals.bytes, class.retrieval_gb)
                    + Money::of_requests(contents.others.reads, standard.read_1000);
                let egress = Money::of_bytes(contents.originals.bytes + contents.others.bytes, tariff.egress_gb);
                assert_eq!(read + egress, row.restore);
                let cells = [row.storage, row.first_backup, row.upkeep, row.first_year, row.later_year, read, row.restore].map(|money| money.to_string());
                expected.push(format!("| {terabytes} TB | {} | `{name}` | {} |", vendor.name(), cells.join(" | ")));
            }
        }
    }
    let rows: Vec<&str> = readme.lines().filter(|line| line.starts_with("| 1 TB |") || line.starts_with("| 4 TB |")).collect();
    assert_eq!(rows, expected, "left: deploy/terraform/README.md; right: the program's prices\n{}", expected.join("\n"));
    assert_eq!(contents_gb(&supposed(1)), (1_000, 50));
}

fn contents_gb(contents: &Contents) -> (u64, u64) {
    (contents.originals.bytes / GB, contents.others.bytes / GB)
}
