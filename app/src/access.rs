//! With what a store is reached: the credentials of this environment, found where other programs look for them too.

use crate::config::{Settings, UsageError};
use crate::metrics::Tally;
use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use immich_backup_core::event::Monitor;
use immich_backup_core::repository::cloud::{Access, GcsCredentials, IDLE, Options, RetryPolicy};
use immich_backup_core::repository::place::Place;
use immich_backup_core::repository::storage_class::StorageClass;
use immich_backup_core::told::told;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Keys that expire within this time are replaced.
const FRESH: Duration = Duration::from_secs(300);
/// But not asked for more often than this, as long as they are good.
const ASKED: Duration = Duration::from_secs(15);

/// How the store at `place` is used.
///
/// # Errors
/// A setting that cannot be understood.
pub async fn options(settings: &Settings, place: &Place, tally: &Arc<Tally>, stop: &CancellationToken) -> Result<Options, UsageError> {
    let class = storage_class(settings, place)?;
    let usual = RetryPolicy::default();
    let retry =
        RetryPolicy { retries: settings.parsed("retries")?.unwrap_or(usual.retries), first_wait: settings.time("retry-wait")?.unwrap_or(usual.first_wait) };
    let idle = settings.time("idle-timeout")?.unwrap_or(IDLE);
    if idle.is_zero() {
        return Err(UsageError("--idle-timeout has to be longer than nothing".to_owned()));
    }
    let original_class = class.map(|class| class.as_str().to_owned());
    let (monitor, requests): (Arc<dyn Monitor>, _) = (Arc::<Tally>::clone(tally), Arc::clone(&tally.requests));
    Ok(Options { access: access(place).await, retry, idle, original_class, requests, monitor, stop: stop.clone() })
}

/// `--storage-class`, as `place` knows it.
///
/// # Errors
/// The store has no such class, or none that can be read at once.
pub fn storage_class(settings: &Settings, place: &Place) -> Result<Option<StorageClass>, UsageError> {
    let Some(text) = settings.text("storage-class") else { return Ok(None) };
    StorageClass::parse(place, text).map(Some).map_err(|error| UsageError(format!("{error}; {}", error.hint())))
}

async fn access(place: &Place) -> Access {
    let mut access = Access::default();
    match place {
        Place::Directory(_) => {}
        Place::S3(place) => {
            let keys = AwsKeys::find(place.region.clone()).await;
            access.aws_region.clone_from(&keys.region);
            access.aws = Some(Arc::new(keys));
        }
        Place::Gcs(_) => access.gcs = gcs(),
        Place::Azure(_) => access.azure = azure(),
    }
    access
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn gcs() -> GcsCredentials {
    if let Some(json) = environment("GCS_CREDENTIALS") {
        return GcsCredentials::Key(json);
    }
    environment("GOOGLE_APPLICATION_CREDENTIALS").map_or(GcsCredentials::Ambient, |path| GcsCredentials::File(PathBuf::from(path)))
}

fn azure() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| name.starts_with("AZURE_") && !value.is_empty())
        .collect()
}

/// Which credentials there are, in words, for a person to check.
///
/// # Errors
/// There are none.
pub async fn describe(place: &Place) -> anyhow::Result<String> {
    Ok(match place {
        Place::Directory(_) => "none needed".to_owned(),
        Place::S3(place) => AwsKeys::find(place.region.clone()).await.describe().await?,
        Place::Gcs(_) => match gcs() {
            GcsCredentials::Key(_) => "service account's key in GCS_CREDENTIALS".to_owned(),
            GcsCredentials::File(path) => format!("`{}` (GOOGLE_APPLICATION_CREDENTIALS)", path.display()),
            GcsCredentials::Ambient => "application default credentials, else the metadata server".to_owned(),
        },
        Place::Azure(_) => {
            let names: Vec<_> = azure().into_iter().map(|(name, _)| name).collect();
            if names.is_empty() { "managed identity (no AZURE_… variable is set)".to_owned() } else { names.join(", ") }
        }
    })
}

/// Keys for S3, by the chain of Amazon's own programs: environment, profile (SSO, roles, processes), web identity, container, instance.
struct AwsKeys {
    provider: Option<SharedCredentialsProvider>,
    region: Option<String>,
    kept: Mutex<Option<Kept>>,
}

/// Keys that were given.
struct Kept {
    credential: Arc<AwsCredential>,
    expires: Option<SystemTime>,
    asked: Instant,
}

impl std::fmt::Debug for AwsKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AwsKeys").field("region", &self.region).finish_non_exhaustive()
    }
}

impl AwsKeys {
    /// `region`, where it is known, saves asking for it.
    async fn find(region: Option<String>) -> Self {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(region) = region.clone() {
            loader = loader.region(aws_config::Region::new(region));
        }
        let config = loader.load().await;
        Self { provider: config.credentials_provider(), region: region.or_else(|| config.region().map(ToString::to_string)), kept: Mutex::new(None) }
    }

    async fn ask(&self) -> Result<Credentials, String> {
        let provider = self.provider.as_ref().ok_or("none were found")?;
        provider.provide_credentials().await.map_err(|error| {
            let text = told(&error);
            format!("{text} (set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; docs/stores.md has all ways)")
        })
    }

    async fn describe(&self) -> anyhow::Result<String> {
        let credentials = self.ask().await.map_err(anyhow::Error::msg)?;
        // Which of the chain gave them is said here only; the secret is not.
        let shown = format!("{credentials:?}");
        let source = shown.split("provider_name: \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("unknown");
        Ok(format!("key {} from {source}", credentials.access_key_id()))
    }
}

#[async_trait]
impl CredentialProvider for AwsKeys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut kept = self.kept.lock().await;
        if let Some(Kept { credential, expires, asked }) = &*kept {
            let now = SystemTime::now();
            let good = |margin: Duration| expires.is_none_or(|at| at > now + margin);
            if good(FRESH) || (good(Duration::ZERO) && asked.elapsed() < ASKED) {
                return Ok(Arc::clone(credential));
            }
        }
        let found = self.ask().await.map_err(|problem| object_store::Error::Generic { store: "S3", source: problem.into() })?;
        let credential = Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        });
        *kept = Some(Kept { credential: Arc::clone(&credential), expires: found.expiry(), asked: Instant::now() });
        Ok(credential)
    }
}
