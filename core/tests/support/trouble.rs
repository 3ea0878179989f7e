//! A store that gets into trouble by a seed's schedule: what can go wrong between a program and any store, as the trait `Store` shows it.

use super::memory::{MemoryStore, PIECE_BYTES};
use super::story::Random;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use immich_backup_core::model::Sha256;
use immich_backup_core::repository::checksum::Checksum;
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::store::{Attributes, Begin, ByteStream, Created, ObjectInfo, ObjectStream, Store, StoreCapabilities, StoreError, Upload};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nobody is there.
    Refused,
    /// The line breaks before the store has it.
    LostBefore,
    /// The line breaks after the store has it.
    LostAfter,
    /// No answer ever comes, and the store has nothing of it. The process is ended in the end.
    HangsBefore,
    /// No answer ever comes, and the store has done it.
    HangsAfter,
    /// 500, or anything that changes nothing.
    ServerError,
    /// 503, for longer than one has patience.
    Busy,
    /// What was sent of a large object is gone.
    UploadLost,
    /// Fewer bytes come than there are, and nothing says so.
    Truncated,
    /// One bit of what is read is another.
    Altered,
    /// The bytes stop in the middle, with an error.
    Broken,
    /// The store says another checksum than the content has.
    WrongChecksum,
    /// A listing does not show what was created last.
    StaleList,
    /// From one moment on there is no room.
    Full,
    /// From one moment on the credentials are not good any more.
    Expired,
}

impl Fault {
    /// All there are.
    pub const ALL: [Self; 15] = [
        Self::Refused,
        Self::LostBefore,
        Self::LostAfter,
        Self::HangsBefore,
        Self::HangsAfter,
        Self::ServerError,
        Self::Busy,
        Self::UploadLost,
        Self::Truncated,
        Self::Altered,
        Self::Broken,
        Self::WrongChecksum,
        Self::StaleList,
        Self::Full,
        Self::Expired,
    ];

    /// Whether it makes the program see something else than there is, without an error: then content may be stored again, and a log be called damaged.
    pub fn deceives(self) -> bool {
        matches!(self, Self::Truncated | Self::Altered | Self::WrongChecksum | Self::StaleList)
    }

    fn concerns(self, call: Call) -> bool {
        match self {
            Self::Refused | Self::HangsBefore | Self::ServerError | Self::Busy | Self::Expired => true,
            Self::LostBefore | Self::LostAfter | Self::HangsAfter | Self::Full => matches!(call, Call::Create | Call::Finish),
            Self::UploadLost => call == Call::Finish,
            Self::Truncated | Self::Altered => call == Call::Get,
            Self::Broken => matches!(call, Call::Get | Call::List),
            Self::WrongChecksum => call == Call::Head,
            Self::StaleList => call == Call::List,
        }
    }

    fn lasts(self) -> bool {
        matches!(self, Self::Full | Self::Expired)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Create,
    Finish,
    Get,
    Head,
    List,
    Sync,
}

#[derive(Debug)]
struct Schedule {
    random: Random,
    kinds: Vec<Fault>,
    one_in: usize,
    /// What lasts until the next operation: it began.
    lasting: Vec<Fault>,
    /// What went wrong, with which key.
    happened: Vec<(Fault, String)>,
    calm: bool,
}

/// A store in memory, and a schedule of what goes wrong with it.
#[derive(Debug, Clone)]
pub struct Troubled {
    inner: MemoryStore,
    schedule: Arc<Mutex<Schedule>>,
    hangs: watch::Sender<bool>,
}

fn error(text: &str) -> io::Error {
    io::Error::other(format!("{text} (injected)"))
}

impl Troubled {
    /// `kinds` go wrong, once in `one_in` calls on average.
    pub fn new(inner: MemoryStore, seed: u64, kinds: &[Fault], one_in: usize) -> Self {
        let schedule = Schedule { random: Random::new(seed), kinds: kinds.to_vec(), one_in, lasting: Vec::new(), happened: Vec::new(), calm: false };
        Self { inner, schedule: Arc::new(Mutex::new(schedule)), hangs: watch::Sender::new(false) }
    }

    /// Room is made, credentials are renewed, nobody hangs: a new process begins.
    pub fn renew(&self) {
        self.schedule.lock().unwrap().lasting.clear();
        self.hangs.send_replace(false);
    }

    /// Nothing goes wrong any more.
    pub fn calm(&self) {
        self.renew();
        self.schedule.lock().unwrap().calm = true;
    }

    /// What went wrong so far, with which key.
    pub fn happened(&self) -> Vec<(Fault, String)> {
        self.schedule.lock().unwrap().happened.clone()
    }

    /// Returns once somebody waits for an answer that never comes.
    pub async fn hangs(&self) {
        let mut hangs = self.hangs.subscribe();
        hangs.wait_for(|hangs| *hangs).await.unwrap();
    }

    fn draw(&self, call: Call, key: &str) -> Option<Fault> {
        let mut schedule = self.schedule.lock().unwrap();
        if schedule.calm {
            return None;
        }
        let lasting = schedule.lasting.iter().copied().find(|fault| fault.concerns(call));
        let fault = match lasting {
            Some(fault) => fault,
            None => {
                let one_in = schedule.one_in;
                if !schedule.random.once_in(one_in) {
                    return None;
                }
                let kinds: Vec<_> = schedule.kinds.iter().copied().filter(|kind| kind.concerns(call)).collect();
                if kinds.is_empty() {
                    return None;
                }
                *schedule.random.pick(&kinds)
            }
        };
        if fault.lasts() && lasting.is_none() {
            schedule.lasting.push(fault);
        }
        schedule.happened.push((fault, key.to_owned()));
        Some(fault)
    }

    fn below(&self, end: usize) -> usize {
        self.schedule.lock().unwrap().random.below(end)
    }

    async fn hang<T>(&self) -> T {
        self.hangs.send_replace(true);
        std::future::pending().await
    }

    /// An error that says what `fault` is, of a call that changed nothing.
    fn failure(fault: Fault, action: &'static str, key: &str) -> StoreError {
        let key = key.to_owned();
        match fault {
            Fault::Refused => StoreError::Unreachable { action, key, source: error("connection refused") },
            Fault::Busy => StoreError::Unreachable { action, key, source: error("503 Slow Down") },
            Fault::LostBefore | Fault::LostAfter => StoreError::Unanswered { action, key, source: error("connection reset") },
            Fault::Full => StoreError::Full { action, key, source: error("quota exceeded") },
            Fault::Expired => StoreError::Denied { action, key, source: error("ExpiredToken") },
            Fault::UploadLost => StoreError::UploadLost { key, source: error("NoSuchUpload") },
            _ => StoreError::Io { action, key, source: error("500 Internal Server Error") },
        }
    }

    async fn making(&self, call: Call, key: &Key, making: impl Future<Output = Result<Created, StoreError>> + Send) -> Result<Created, StoreError> {
        match self.draw(call, key.as_str()) {
            None => making.await,
            Some(Fault::HangsBefore) => self.hang().await,
            Some(Fault::HangsAfter) => {
                making.await?;
                self.hang().await
            }
            Some(fault) => {
                if fault == Fault::LostAfter {
                    making.await?;
                }
                Err(Self::failure(fault, "create", key.as_str()))
            }
        }
    }
}

struct TroubledUpload {
    store: Troubled,
    key: Key,
    inner: Box<dyn Upload>,
}

#[async_trait]
impl Upload for TroubledUpload {
    async fn write(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.inner.write(piece).await
    }

    async fn finish(self: Box<Self>, sha256: &Sha256) -> Result<Created, StoreError> {
        let Self { store, key, inner } = *self;
        store.making(Call::Finish, &key, inner.finish(sha256)).await
    }
}

#[async_trait]
impl Store for Troubled {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn capabilities(&self) -> StoreCapabilities {
        self.inner.capabilities()
    }

    async fn begin(&self, identity: &Bytes, what: Begin<'_>) -> Result<Created, StoreError> {
        self.making(Call::Create, &Key::identity(), self.inner.begin(identity, what)).await
    }

    fn stream_bytes(&self, size_bytes: u64) -> usize {
        self.inner.stream_bytes(size_bytes)
    }

    async fn create(&self, key: &Key, content: Bytes, attributes: &Attributes) -> Result<Created, StoreError> {
        self.making(Call::Create, key, self.inner.create(key, content, attributes)).await
    }

    async fn create_streamed(&self, key: &Key, attributes: &Attributes) -> Result<Box<dyn Upload>, StoreError> {
        let inner = self.inner.create_streamed(key, attributes).await?;
        Ok(Box::new(TroubledUpload { store: self.clone(), key: key.clone(), inner }))
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StoreError> {
        let fault = self.draw(Call::Get, key.as_str());
        let mut pieces = match fault {
            None => return self.inner.get(key, range).await,
            Some(Fault::HangsBefore) => return self.hang().await,
            Some(Fault::Truncated | Fault::Altered | Fault::Broken) => self.inner.get(key, range).await?,
            Some(fault) => return Err(Self::failure(fault, "read", key.as_str())),
        };
        let mut content = Vec::new();
        while let Some(piece) = pieces.next().await {
            content.extend_from_slice(&piece?);
        }
        let at = self.below(content.len());
        match fault {
            Some(Fault::Altered) if !content.is_empty() => content[at] ^= 1 << self.below(8),
            Some(Fault::Altered) => {}
            _ => content.truncate(at),
        }
        // In pieces, as every store hands out what it has.
        let mut answer: Vec<_> = content.chunks(PIECE_BYTES).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        if fault == Some(Fault::Broken) {
            answer.push(Err(Self::failure(Fault::Broken, "read", key.as_str())));
        }
        Ok(futures_util::stream::iter(answer).boxed())
    }

    async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StoreError> {
        match self.draw(Call::Head, key.as_str()) {
            None => self.inner.head(key).await,
            Some(Fault::HangsBefore) => self.hang().await,
            Some(Fault::WrongChecksum) => {
                let wrong = Checksum::Sha256(Sha256::of(&self.below(usize::MAX).to_le_bytes()));
                Ok(self.inner.head(key).await?.map(|info| ObjectInfo { checksum: Some(wrong), ..info }))
            }
            Some(fault) => Err(Self::failure(fault, "look at", key.as_str())),
        }
    }

    fn list(&self, prefix: &str, after: Option<&Key>) -> ObjectStream {
        let listing = self.inner.list(prefix, after);
        match self.draw(Call::List, prefix) {
            None => listing,
            Some(Fault::HangsBefore) => {
                let store = self.clone();
                futures_util::stream::once(async move { store.hang().await }).boxed()
            }
            Some(Fault::StaleList) => {
                let missing = self.inner.newest(1 + self.below(4));
                listing.filter(move |found| std::future::ready(found.as_ref().is_ok_and(|found| !missing.contains(&found.key.to_string())))).boxed()
            }
            Some(Fault::Broken) => {
                let broken = Err(Self::failure(Fault::Broken, "list", prefix));
                listing.take(self.below(4)).chain(futures_util::stream::once(std::future::ready(broken))).boxed()
            }
            Some(fault) => {
                let failed = Err(Self::failure(fault, "list", prefix));
                futures_util::stream::once(std::future::ready(failed)).boxed()
            }
        }
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        panic!("nobody asked for {key} to be removed");
    }

    async fn sync(&self) -> Result<(), StoreError> {
        match self.draw(Call::Sync, self.inner.url()) {
            None => self.inner.sync().await,
            Some(Fault::HangsBefore) => self.hang().await,
            Some(fault) => Err(Self::failure(fault, "flush", self.inner.url())),
        }
    }
}
