//! The least that this program needs to be allowed to do at a place, as text for people and as JSON for programs.
//!
//! Made from the place alone: nobody is asked, so it can be shown before there are credentials.

use immich_backup_core::repository::place::{AzurePlace, GcsPlace, Place, S3Place};
use immich_backup_core::repository::vendor::Vendor;
use serde_json::{Value, json};

/// What to allow, how to set it up, and what to do besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Privileges {
    /// What the rights amount to.
    summary: String,
    /// A policy or condition to hand to the provider.
    document: Option<Document>,
    /// Commands of the provider's own tool.
    commands: Vec<String>,
    /// What else to know.
    notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Document {
    name: &'static str,
    body: Value,
}

impl Privileges {
    /// The least privileges for a repository at `place`.
    #[must_use]
    pub fn of(place: &Place) -> Self {
        match (place, Vendor::of(place)) {
            (Place::Directory(_), _) => directory(),
            (Place::Gcs(place), _) => google(place),
            (Place::Azure(place), _) => azure(place),
            (Place::S3(place), Vendor::Amazon) => amazon(place),
            (Place::S3(place), Vendor::Backblaze) => backblaze(place),
            (Place::S3(place), Vendor::Cloudflare) => cloudflare(place),
            (Place::S3(place), Vendor::Hetzner) => hetzner(place),
            (Place::S3(place), vendor) => look_alike(place, vendor),
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines = wrapped(&self.summary, "  ", "  ");
        if let Some(document) = &self.document {
            lines.push(format!("\n  {}:", document.name));
            let body = serde_json::to_string_pretty(&document.body).unwrap_or_default();
            lines.extend(body.lines().map(|line| format!("    {line}")));
        }
        if !self.commands.is_empty() {
            lines.push(String::new());
            lines.extend(self.commands.iter().map(|command| format!("    {command}")));
        }
        if !self.notes.is_empty() {
            lines.push(String::new());
            lines.extend(self.notes.iter().flat_map(|note| wrapped(note, "  - ", "    ")));
        }
        lines.join("\n")
    }

    /// For programs.
    #[must_use]
    pub fn fields(&self) -> Value {
        json!({
            "summary": self.summary,
            "document": self.document.as_ref().map(|document| &document.body),
            "commands": self.commands,
            "notes": self.notes,
        })
    }
}

/// Where lines of text for people end.
const WIDTH: usize = 100;

fn wrapped(text: &str, first: &str, others: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = first.to_owned();
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(std::mem::replace(&mut line, others.to_owned()));
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    lines.push(line);
    lines
}

/// A word as a POSIX shell takes it literally.
#[must_use]
pub fn quoted(word: &str) -> String {
    let plain = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:=@,+%".contains(&byte));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

fn directory() -> Privileges {
    Privileges {
        summary:
            "This program only ever adds files there. The user it runs as has to own the folder; give nobody else write access, and keep a second copy on \
                  another machine or medium (any copy tool will do: files are never changed once written)."
                .to_owned(),
        document: None,
        commands: Vec::new(),
        notes: Vec::new(),
    }
}

/// `text` in a policy's resource or pattern: `*`, `?` and `$` are themselves.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html>
fn literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '*' | '?' | '$' => literal.extend(['$', '{', character, '}']),
            other => literal.push(other),
        }
    }
    literal
}

/// What keys of the repository look like in a policy.
fn keys(prefix: &str) -> String {
    if prefix.is_empty() { "*".to_owned() } else { format!("{}/*", literal(prefix)) }
}

/// Create, read, list and abort in S3's policy language; with the condition that makes puts create-only where the store knows it.
///
/// The condition and its exemption for the parts of an upload:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes-enforce.html>. `IfExists`: S3 answers a look at a key that is not there with
/// 403 instead of 404 to those who may not list, and a look has no `s3:prefix`.
fn policy(place: &S3Place, create_only: bool) -> Value {
    let partition = match place.region.as_deref() {
        Some(region) if region.starts_with("cn-") => "aws-cn",
        Some(region) if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    };
    let bucket = format!("arn:{partition}:s3:::{}", place.bucket);
    let objects = format!("{bucket}/{}", keys(&place.prefix));
    let mut statements = vec![
        json!({ "Sid": "CreateAndRead", "Effect": "Allow", "Action": ["s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"], "Resource": objects }),
        json!({ "Sid": "List", "Effect": "Allow", "Action": "s3:ListBucket", "Resource": bucket }),
    ];
    if !place.prefix.is_empty()
        && let Some(Value::Object(list)) = statements.last_mut()
    {
        list.insert("Condition".to_owned(), json!({ "StringLikeIfExists": { "s3:prefix": keys(&place.prefix) } }));
    }
    if create_only {
        statements.push(json!({
            "Sid": "NeverOverwrite",
            "Effect": "Deny",
            "Action": "s3:PutObject",
            "Resource": objects,
            "Condition": { "Null": { "s3:if-none-match": "true" }, "Bool": { "s3:ObjectCreationOperation": "true" } },
        }));
    }
    json!({ "Version": "2012-10-17", "Statement": statements })
}

const OWN_BUCKET: &str = "Best is a bucket of its own: who may look for one missing key may also list the names of a whole bucket.";

fn amazon(place: &S3Place) -> Privileges {
    let mut notes = vec![
        "In the bucket's own policy, with \"Principal\": \"*\", the statement NeverOverwrite binds everybody else as well.".to_owned(),
        "s3:AbortMultipartUpload clears away what a run of its own left behind. Without it, a lifecycle rule AbortIncompleteMultipartUpload (7 days) does the same."
            .to_owned(),
        "Nothing here deletes. Against those who may: turn on versioning, or Object Lock with a default retention.".to_owned(),
        "With a key of your own (SSE-KMS), allow kms:GenerateDataKey and kms:Decrypt on it.".to_owned(),
    ];
    if !place.prefix.is_empty() {
        notes.push(OWN_BUCKET.to_owned());
    }
    Privileges {
        summary: "A user or role of its own that may create, read and list, and neither overwrite nor delete.".to_owned(),
        document: Some(Document { name: "IAM policy", body: policy(place, true) }),
        commands: Vec::new(),
        notes,
    }
}

fn look_alike(place: &S3Place, vendor: Vendor) -> Privileges {
    let mut notes = vec![
        "Nothing here deletes. Turn on versioning or Object Lock if the store has them: then nothing that is overwritten or deleted is lost.".to_owned(),
        "Parts of uploads that were never ended: clear them with a lifecycle rule AbortIncompleteMultipartUpload (7 days) if the store has it.".to_owned(),
    ];
    if vendor == Vendor::Wasabi {
        notes.insert(0, "Wasabi ignores the condition that makes a put create-only, so its policies cannot ask for it: overwriting stays possible.".to_owned());
    } else {
        notes.insert(
            0,
            "Where the store takes policies, it may know the condition s3:if-none-match or not; try a put without it. Where it knows rights by bucket only (Garage, \
             SeaweedFS), its right to write includes overwriting and deleting."
                .to_owned(),
        );
        notes.push("docs/stores.md says what is known of MinIO, Garage, Ceph and SeaweedFS.".to_owned());
    }
    Privileges {
        summary: "A key of its own that may create, read and list, as far as this store can say that:".to_owned(),
        document: Some(Document { name: "policy in S3's language", body: policy(place, vendor != Vendor::Wasabi) }),
        commands: Vec::new(),
        notes,
    }
}

/// Capabilities of application keys: <https://www.backblaze.com/docs/cloud-storage-application-key-capabilities>.
fn backblaze(place: &S3Place) -> Privileges {
    let prefix = if place.prefix.is_empty() { String::new() } else { format!(" --name-prefix {}", quoted(&format!("{}/", place.prefix))) };
    Privileges {
        summary: "An application key for this bucket alone that may list, read and write files, and not delete them.".to_owned(),
        document: None,
        commands: vec![format!("b2 key create --bucket {}{prefix} immich-backup listBuckets,listFiles,readFiles,writeFiles", quoted(&place.bucket))],
        notes: vec![
            "B2 has no create-only puts, and keeps each thing written under one name as a version: nothing is lost by overwriting. Leave the bucket's lifecycle at \
             \"keep all versions\", or use Object Lock."
                .to_owned(),
            "One machine at a time may write here: see \"Stores without conditional writes\" in docs/stores.md.".to_owned(),
        ],
    }
}

/// Tokens: <https://developers.cloudflare.com/r2/api/tokens/>; locks: <https://developers.cloudflare.com/r2/buckets/bucket-locks/>.
fn cloudflare(place: &S3Place) -> Privileges {
    let locked = if place.prefix.is_empty() { "the whole bucket".to_owned() } else { format!("the prefix `{}/`", place.prefix) };
    Privileges {
        summary: format!("An API token \"Object Read & Write\" for the bucket `{}` alone.", place.bucket),
        document: None,
        commands: Vec::new(),
        notes: vec![
            "Such a token may also overwrite and delete, and R2 has no narrower one that writes.".to_owned(),
            format!("A bucket lock rule on {locked} makes up for it: what is younger than its retention can be neither overwritten nor deleted, by anybody."),
        ],
    }
}

fn hetzner(place: &S3Place) -> Privileges {
    Privileges {
        summary: "A key of its own, in a project of its own: a key opens all buckets of its project.".to_owned(),
        document: Some(Document { name: "what it has to be able to do (for a policy of the bucket, add the key as Principal)", body: policy(place, false) }),
        commands: Vec::new(),
        notes: vec![
            "Make the bucket with Object Lock, or turn on versioning: then nothing that is overwritten or deleted is lost.".to_owned(),
            "Whether conditional writes work there is found out by each run; where they do not, one machine at a time may write.".to_owned(),
        ],
    }
}

/// Roles: <https://cloud.google.com/storage/docs/access-control/iam-roles>; the condition:
/// <https://cloud.google.com/iam/docs/conditions-attribute-reference>. A list request has no object's name, but a prefix.
fn google(place: &GcsPlace) -> Privileges {
    let bucket = quoted(&format!("gs://{}", place.bucket));
    let member = "--member=serviceAccount:immich-backup@PROJECT.iam.gserviceaccount.com";
    let condition = if place.prefix.is_empty() { "" } else { " --condition-from-file=condition.json" };
    let bind = |role: &str| format!("gcloud storage buckets add-iam-policy-binding {bucket} {member} --role=roles/storage.{role}{condition}");
    // CEL takes a string as JSON writes it.
    let cel = |text: String| Value::String(text).to_string();
    let document = (!place.prefix.is_empty()).then(|| {
        let objects = cel(format!("projects/_/buckets/{}/objects/{}/", place.bucket, place.prefix));
        let listed = cel(format!("{}/", place.prefix));
        let expression =
            format!("resource.name.startsWith({objects}) || api.getAttribute(\"storage.googleapis.com/objectListPrefix\", \"\").startsWith({listed})");
        Document { name: "condition.json", body: json!({ "title": "immich-backup", "expression": expression }) }
    });
    let mut notes = vec![
        "Without storage.objects.delete, Google refuses to overwrite. Do not give objectAdmin or objectUser.".to_owned(),
        "Large files go by resumable uploads; what a dead run left of one goes away by itself after a week. No lifecycle rule is needed.".to_owned(),
        "Against those who may delete: soft delete (7 days by default), object versioning, or a retention policy on the bucket.".to_owned(),
    ];
    if document.is_some() {
        notes.push("The condition needs uniform bucket-level access.".to_owned());
    }
    Privileges {
        summary: "A service account of its own that may create, read and list, and neither overwrite nor delete.".to_owned(),
        document,
        commands: vec!["gcloud iam service-accounts create immich-backup".to_owned(), bind("objectCreator"), bind("objectViewer")],
        notes,
    }
}

/// Permissions of a SAS: <https://learn.microsoft.com/rest/api/storageservices/create-service-sas>; create for blocks since
/// <https://learn.microsoft.com/rest/api/storageservices/version-2026-04-06>; roles:
/// <https://learn.microsoft.com/azure/role-based-access-control/built-in-roles/storage>.
fn azure(place: &AzurePlace) -> Privileges {
    let account = quoted(place.account.as_deref().unwrap_or("ACCOUNT"));
    let container = quoted(&place.container);
    let mut notes = vec![
        "Roles cannot say this: who may create (Storage Blob Data Contributor) may overwrite and delete as well. With a role or the account's key, rely on versioning and \
         immutability alone."
            .to_owned(),
        "Before version 2026-04-06 of a SAS (`sv=`), create covers files below 16 MiB, and larger ones, which go in blocks, need write (w) as well. Write may overwrite: \
         versioning and immutability make up for it."
            .to_owned(),
        "Versioning keeps what is overwritten or deleted; a time-based retention policy on versions (WORM) keeps anybody from removing those. The container has to be made \
         with it."
            .to_owned(),
        "What a dead run left of an upload goes away by itself after a week.".to_owned(),
    ];
    if !place.prefix.is_empty() {
        notes.push("Nothing here is held to a prefix: best is a container of its own.".to_owned());
    }
    Privileges {
        summary: "A SAS on the container with create, read and list (crl), and without write and delete: it may create, and not overwrite.".to_owned(),
        document: None,
        commands: vec![
            format!("az storage account blob-service-properties update --account-name {account} --enable-versioning true"),
            format!("az storage container-rm create --storage-account {account} --name {container} --enable-vlw"),
            format!("az storage container generate-sas --account-name {account} --name {container} --permissions crl --https-only --expiry DATE"),
        ],
        notes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn privileges(place: &str) -> Privileges {
        Privileges::of(&Place::parse(place).unwrap())
    }

    /// The statements of the policy by their names.
    fn statement(privileges: &Privileges, sid: &str) -> Option<Value> {
        let fields = privileges.fields();
        fields["document"]["Statement"].as_array().unwrap().iter().find(|statement| statement["Sid"] == sid).cloned()
    }

    #[test]
    fn amazon_is_told_to_let_create_read_and_list_and_nothing_more() {
        let privileges = privileges("s3://pictures/immich?region=eu-central-1");
        let all = privileges.fields()["document"].to_string();
        assert!(!all.to_lowercase().contains("delete") && !all.contains("s3:*") && !all.contains("s3:Put*"), "{all}");
        let create = statement(&privileges, "CreateAndRead").unwrap();
        assert_eq!(create["Resource"], "arn:aws:s3:::pictures/immich/*");
        assert_eq!(create["Action"], json!(["s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"]));
        let list = statement(&privileges, "List").unwrap();
        assert_eq!((&list["Resource"], &list["Action"]), (&json!("arn:aws:s3:::pictures"), &json!("s3:ListBucket")));
        assert_eq!(list["Condition"], json!({ "StringLikeIfExists": { "s3:prefix": "immich/*" } }));
    }

    #[test]
    fn a_put_without_the_condition_is_denied_and_the_parts_of_an_upload_are_exempt() {
        let deny = statement(&privileges("s3://pictures"), "NeverOverwrite").unwrap();
        assert_eq!((&deny["Effect"], &deny["Action"], &deny["Resource"]), (&json!("Deny"), &json!("s3:PutObject"), &json!("arn:aws:s3:::pictures/*")));
        assert_eq!(deny["Condition"], json!({ "Null": { "s3:if-none-match": "true" }, "Bool": { "s3:ObjectCreationOperation": "true" } }));
        // A bucket of its own needs no condition on what is listed.
        assert_eq!(statement(&privileges("s3://pictures"), "List").unwrap().get("Condition"), None);
    }

    #[test]
    fn a_prefix_cannot_widen_a_policy() {
        let privileges = privileges("s3://b/a*b%3F$%7Baws:username%7D");
        let create = statement(&privileges, "CreateAndRead").unwrap();
        assert_eq!(create["Resource"], "arn:aws:s3:::b/a${*}b${?}${$}{aws:username}/*");
        let google = super::tests::privileges("gs://b/a\" || true || \"b").fields();
        let expression = google["document"]["expression"].as_str().unwrap();
        assert!(expression.starts_with(r#"resource.name.startsWith("projects/_/buckets/b/objects/a\" || true || \"b/")"#), "{expression}");
    }

    #[test]
    fn other_partitions_have_other_names() {
        for (region, arn) in [("cn-north-1", "arn:aws-cn:s3:::b/*"), ("us-gov-west-1", "arn:aws-us-gov:s3:::b/*"), ("eu-west-1", "arn:aws:s3:::b/*")] {
            let privileges = privileges(&format!("s3://b?region={region}"));
            assert_eq!(statement(&privileges, "CreateAndRead").unwrap()["Resource"], arn);
        }
    }

    #[test]
    fn what_a_store_cannot_say_is_said() {
        let wasabi = privileges("s3://b?endpoint=https://s3.wasabisys.com");
        assert!(statement(&wasabi, "NeverOverwrite").is_none() && wasabi.text().contains("overwriting stays possible"));
        let own = privileges("s3://b/p?endpoint=http://127.0.0.1:3900");
        assert!(statement(&own, "NeverOverwrite").is_some() && own.text().contains("Garage"));
        let b2 = privileges("s3://b/it's?endpoint=https://s3.eu-central-003.backblazeb2.com");
        assert!(b2.text().contains(r"--name-prefix 'it'\''s/' immich-backup listBuckets,listFiles,readFiles,writeFiles"), "{}", b2.text());
        let r2 = privileges("s3://b/p?endpoint=https://a.r2.cloudflarestorage.com");
        assert!(r2.text().contains("bucket lock rule on the prefix `p/`"));
        let hetzner = privileges("s3://b?endpoint=https://fsn1.your-objectstorage.com");
        assert!(hetzner.text().contains("Object Lock"));
    }

    #[test]
    fn google_gets_two_roles_and_azure_a_sas_without_write() {
        let google = privileges("gs://pictures/immich");
        let text = google.text();
        assert!(text.contains("--role=roles/storage.objectCreator --condition-from-file=condition.json") && text.contains("roles/storage.objectViewer"));
        let expression = google.fields()["document"]["expression"].as_str().unwrap().to_owned();
        assert_eq!(
            expression,
            "resource.name.startsWith(\"projects/_/buckets/pictures/objects/immich/\") || \
             api.getAttribute(\"storage.googleapis.com/objectListPrefix\", \"\").startsWith(\"immich/\")"
        );
        assert!(!privileges("gs://pictures").text().contains("condition"));
        let azure = privileges("az://pictures?account=me").text();
        assert!(azure.contains("--account-name me --name pictures --permissions crl ") && azure.contains("--enable-vlw"), "{azure}");
    }

    #[test]
    fn text_for_people_fits_and_a_directory_has_no_policy() {
        for place in ["/mnt/backup", "s3://b/p", "gs://b/p", "az://c/p", "s3://b?endpoint=http://h", "s3://b?endpoint=https://s3.wasabisys.com"] {
            let privileges = privileges(place);
            for line in privileges.text().lines().filter(|line| !line.starts_with("    ")) {
                assert!(line.chars().count() <= WIDTH, "{line}");
            }
            assert!(privileges.fields()["summary"].is_string());
        }
        let directory = privileges("/mnt/backup");
        assert!(directory.fields()["document"].is_null() && directory.text().contains("only ever adds files"));
    }

    #[test]
    fn a_word_for_the_shell_is_taken_literally() {
        assert_eq!(quoted("s3://b/p"), "s3://b/p");
        assert_eq!(quoted("s3://b?endpoint=http://h&region=r"), "'s3://b?endpoint=http://h&region=r'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
