//! Which Immich is on this machine: what nobody said is found, by asking the engine, else by reading Compose's files.

use crate::app::App;
use crate::config::Settings;
use crate::database::{self, said_at_all};
use immich_backup_core::backup::Source;
use immich_backup_core::database::client::Client;
use immich_backup_core::database::import_paths::import_paths;
use immich_backup_core::event::Event;
use immich_backup_core::model::{ExternalName, InvalidPath, Root, RootPath};
use immich_backup_core::stack::address::{Surroundings, addresses};
use immich_backup_core::stack::compose::{Compose, ComposeError, tidy};
use immich_backup_core::stack::copies::{Configuration, Copied};
use immich_backup_core::stack::discover::{self, Choice, Database, DiscoverError, External, Found, Known, Media, Place, Site, Teller};
use immich_backup_core::stack::engine::{Address, Engine, EngineError};
use immich_backup_core::stack::own::{Here, Signs, mark};
use immich_backup_core::stack::project::{Container, containers, image_digests};
use immich_backup_core::told::told;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why no Immich was found.
#[derive(Debug, thiserror::Error)]
pub enum Unfound {
    /// No engine can be asked.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// What it has is not it, or not only.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// The Compose files do not tell.
    #[error(transparent)]
    Compose(#[from] ComposeError),
}

impl Unfound {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Engine(error) => {
                let or = "or say --library DIR, and --database URL or --no-database";
                Some(error.hint().map_or_else(|| or.to_owned(), |hint| format!("{hint}; {or}")))
            }
            Self::Discover(error) => Some(error.hint()),
            Self::Compose(error) => Some(error.hint()),
        }
    }

    /// Whether the user has to say more, rather than mend something.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Engine(error) => error.is_absent(),
            Self::Discover(error) => {
                matches!(
                    error,
                    DiscoverError::Several { .. } | DiscoverError::NotThere { .. } | DiscoverError::NoImmich { .. } | DiscoverError::SeveralDatabases { .. }
                )
            }
            Self::Compose(error) => matches!(error, ComposeError::NoFile { .. }),
        }
    }

    /// Whether there simply is no Immich on this machine, as far as one can tell.
    pub fn is_nothing(&self) -> bool {
        match self {
            Self::Engine(error) => error.is_absent(),
            Self::Discover(error) => matches!(error, DiscoverError::NoImmich { .. }),
            Self::Compose(_) => false,
        }
    }
}

/// The Immich of this machine.
#[derive(Debug)]
pub struct Stack {
    /// What is known of it.
    pub site: Site,
    /// Where this program runs.
    pub here: Here,
    /// The engine that told of it, if one did, and who named that.
    pub engine: Option<(Engine, String)>,
    /// Its Compose files.
    pub compose: Option<Compose>,
    /// What is not as it should be, and stops nothing.
    pub problems: Vec<String>,
}

/// What was found for what nobody said.
#[derive(Debug)]
pub struct Findings {
    /// The Immich.
    pub stack: Stack,
    /// Its media location, where no library was said.
    pub media: Option<Found<Media>>,
    /// Its database, where none was said.
    pub database: Option<Found<Database>>,
}

/// Where an engine may be, as the settings and the environment say.
pub fn engine_addresses(settings: &Settings) -> Vec<Address> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let said = settings.found("docker-host").and_then(|found| {
        let address = found.values.first().filter(|address| !address.is_empty())?.clone();
        Some(Address { address, origin: found.origin.to_string() })
    });
    addresses(&Surroundings {
        said,
        context: std::env::var("DOCKER_CONTEXT").ok().filter(|name| !name.is_empty()),
        config_folder: folder("DOCKER_CONFIG").or_else(|| folder("HOME").map(|home| home.join(".docker"))),
        runtime_folder: folder("XDG_RUNTIME_DIR"),
    })
}

/// Whether somebody said where Immich is: by an engine, a project or a folder.
pub fn is_place_said(settings: &Settings) -> bool {
    ["docker-host", "compose-project", "immich-dir"].into_iter().any(|name| settings.text(name).is_some_and(|text| !text.is_empty()))
}

/// The first engine that answers.
///
/// # Errors
/// None does.
pub async fn engine(settings: &Settings) -> Result<Engine, EngineError> {
    Engine::connect_to_first(&engine_addresses(settings)).await
}

/// What an engine has, with what this program needs marked, and where this program runs.
///
/// # Errors
/// The engine's.
pub async fn look_at(engine: &Engine) -> Result<(Vec<Container>, Here), EngineError> {
    let mut all = containers(engine).await?;
    // It may look up a name.
    let here = tokio::task::block_in_place(|| mark(&mut all, &Signs::look(), engine.address()));
    Ok((all, here))
}

fn choice(settings: &Settings) -> Choice {
    let text = |name: &str| settings.text(name).filter(|text| !text.is_empty());
    let folder = text("immich-dir").map(|folder| tidy(&std::path::absolute(folder).unwrap_or_else(|_| PathBuf::from(folder))));
    Choice { project: text("compose-project").map(str::to_owned), folder }
}

/// The Immich that is meant.
///
/// # Errors
/// There is none, or nothing says which.
pub async fn stack(app: &App) -> Result<Stack, Unfound> {
    let choice = choice(&app.settings);
    let (mut unreached, mut unfit) = (Vec::new(), None);
    for address in engine_addresses(&app.settings) {
        let engine = match Engine::connect(&address.address).await {
            Ok(engine) => engine,
            Err(error) => {
                unreached.push(error);
                continue;
            }
        };
        let (all, here) = look_at(&engine).await?;
        match discover::choose(&all, &choice, &here) {
            Ok(site) => return Ok(of_engine(site, here, (engine, address.origin))),
            Err(error @ DiscoverError::Several { .. }) => return Err(error.into()),
            // Another engine may have it.
            Err(error) => drop(unfit.get_or_insert(error)),
        }
    }
    let why = match (unfit, unreached.pop()) {
        (Some(unfit), _) => Unfound::Discover(unfit),
        (None, Some(only)) if unreached.is_empty() => Unfound::Engine(only),
        (None, last) => Unfound::Engine(EngineError::Nowhere { tried: unreached.into_iter().chain(last).collect() }),
    };
    match choice.folder.filter(|_| choice.project.is_none()) {
        Some(folder) => of_files(&folder, &why),
        None => Err(why),
    }
}

/// An Immich that an engine tells of, with what the project's own files say besides: versions of Compose before 2 write no label of what waits for what.
pub fn of_engine(mut site: Site, here: Here, engine: (Engine, String)) -> Stack {
    let mut problems = Vec::new();
    let mut compose = None;
    if let Some(project) = &mut site.project
        && let Some(folder) = project.working_dir.clone()
    {
        match files_of(&project.name, &folder, &project.config_files, &project.environment_files, &here) {
            Ok(read) => {
                read.complete(project);
                compose = Some(read);
            }
            Err(problem) => problems.push(format!("the Compose files of `{}` cannot be read: {problem}", project.name)),
        }
    }
    Stack { site, here, engine: Some(engine), compose, problems }
}

fn files_of(name: &str, folder: &Path, files: &[PathBuf], environment: &[PathBuf], here: &Here) -> Result<Compose, String> {
    let place = |path: &PathBuf| here.path(path).map_err(|error| format!("{error}; {}", error.hint()));
    let folder = place(&folder.to_owned())?;
    let files = files.iter().map(place).collect::<Result<Vec<_>, _>>()?;
    let environment = environment.iter().map(place).collect::<Result<Vec<_>, _>>()?;
    Compose::read_project(name, &folder, files, &environment).map_err(|error| told(&error))
}

fn of_files(folder: &Path, why: &Unfound) -> Result<Stack, Unfound> {
    let compose = Compose::read(folder)?;
    let all = compose.containers();
    let mut sites = discover::sites(&all, Teller::Files);
    let Some(site) = sites.pop() else {
        return Err(DiscoverError::NoImmich { containers: all.into_iter().map(|container| container.name).collect() }.into());
    };
    let problems = vec![format!("no engine tells of the stack, its files in `{}` are gone by: {}", folder.display(), told(why))];
    Ok(Stack { site, here: Here::Host, engine: None, compose: Some(compose), problems })
}

/// What nobody said.
#[derive(Debug, Clone, Copy)]
pub struct Sought {
    /// The library.
    pub library: bool,
    /// The database.
    pub database: bool,
    /// Somebody said which Immich: by its project, or by its folder.
    named: bool,
    /// By its project.
    project: bool,
}

impl Sought {
    /// What these settings leave open.
    pub fn of(settings: &Settings) -> Self {
        let is_said = |name: &str| settings.text(name).is_some_and(|text| !text.is_empty());
        let project = is_said("compose-project");
        Self { library: !is_said("library"), database: !said_at_all(settings), named: project || is_said("immich-dir"), project }
    }

    /// Whether everything was said.
    pub fn is_nothing(self) -> bool {
        !self.library && !self.database && !self.named
    }

    /// Whether a backup can be made without it.
    pub fn is_optional(self) -> bool {
        !self.library && !self.named
    }

    /// That the library that was said is another one than that of the Immich here. Its database would prove nothing, and come back as what it is not.
    pub fn other_library(self, settings: &Settings, media: Option<&Found<Media>>) -> Option<String> {
        let said = settings.text("library").filter(|_| !self.library && !self.project)?;
        let is_it = media.is_some_and(|media| same_folder(&media.value.path, Path::new(said)));
        let there = media.map_or_else(|| "cannot be told".to_owned(), |media| format!("is `{}`", media.value.path.display()));
        (!is_it).then(|| format!("its library {there}, and not `{said}` (--compose-project says that it is meant all the same)"))
    }
}

fn same_folder(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Looks for what nobody said: the library, the database. `None` where both were said, or where nothing speaks for an Immich here and a library was said.
///
/// # Errors
/// A library is wanted and there is none, or something that was asked for by name is not there.
pub async fn find(app: &App) -> Result<Option<Findings>, Unfound> {
    let settings = &app.settings;
    let sought = Sought::of(settings);
    if sought.is_nothing() {
        return Ok(None);
    }
    let warn = |message: String| app.monitor.emit(Event::Warned { message });
    let stack = match stack(app).await {
        Ok(stack) => stack,
        Err(error) if sought.is_optional() && error.is_nothing() => return Ok(None),
        Err(error) if sought.is_optional() => {
            warn(format!("the database was not looked for: {}", told(&error)));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stack.problems.iter().cloned().for_each(warn);
    let media = stack.site.media(&stack.here);
    if let Some(other) = sought.other_library(settings, media.as_ref().ok()) {
        warn(format!("the Immich here (`{}`) is left aside: {other}", stack.site.name()));
        return Ok(None);
    }
    let media = if sought.library { Some(media?) } else { None };
    let database = if sought.database { Some(stack.site.database()?) } else { None };
    let findings = Findings { stack, media, database };
    findings.tell(app);
    Ok(Some(findings))
}

/// How long the stack beside a library that was said is looked for.
const BESIDE_WAIT: Duration = Duration::from_secs(15);

/// The stack that a library belongs to which was said, as its database was: for its configuration, which nobody can say. Who has none, or may not ask an
/// engine, is not bothered.
pub async fn beside(app: &App) -> Option<Stack> {
    let sought = Sought::of(&app.settings);
    if !sought.is_nothing() {
        return None;
    }
    let stack = tokio::time::timeout(BESIDE_WAIT, stack(app)).await.ok()?.ok()?;
    let media = stack.site.media(&stack.here).ok()?;
    sought.other_library(&app.settings, Some(&media)).is_none().then_some(stack)
}

impl Stack {
    /// What people call it, and where it was found.
    pub fn described(&self) -> Found<String> {
        let server = &self.site.server;
        let (state, origin) = match &self.engine {
            Some((engine, origin)) => (format!("{:?}", server.state).to_lowercase(), format!("{}, {origin}", engine.address())),
            None => ("no engine tells of it".to_owned(), "its Compose files".to_owned()),
        };
        let project = self.site.project.as_ref().map_or_else(|| "no project".to_owned(), |project| format!("project `{}`", project.name));
        Found { value: format!("{project}, server `{}` ({state})", server.name), origin }
    }

    /// Makes a folder of copies of its configuration.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub async fn copy_configuration(&self, folder: &Path, with_secrets: bool) -> io::Result<Copied> {
        let project = self.site.project.as_ref();
        // Without a project, containers that have nothing to do with Immich are beside it.
        let of_immich = |container: &&Container| project.is_some() || container.id == self.site.server.id || self.is_database(container);
        let mut configuration = Configuration {
            folder: self.compose.as_ref().map(|compose| compose.folder.clone()),
            containers: match self.engine {
                Some(_) => self.site.containers().iter().filter(of_immich).cloned().collect(),
                None => Vec::new(),
            },
            ..Configuration::default()
        };
        if let Some((engine, _)) = &self.engine {
            // Known by their ids all the same.
            configuration.digests = image_digests(engine, &configuration.containers).await.unwrap_or_default();
        }
        match (&self.compose, project) {
            (Some(compose), _) => configuration.add(compose),
            // What is not understood is copied as far as it can be.
            (None, Some(project)) => {
                let here = |paths: &[PathBuf]| paths.iter().map(|path| self.here.path(path).unwrap_or_else(|_| path.clone())).collect();
                configuration.folder = project.working_dir.as_ref().and_then(|folder| self.here.path(folder).ok());
                (configuration.compose_files, configuration.environment_files) = (here(&project.config_files), here(&project.environment_files));
            }
            (None, None) => {}
        }
        tokio::task::block_in_place(|| configuration.copy_to(folder, with_secrets))
    }

    fn is_database(&self, container: &Container) -> bool {
        matches!(self.site.database().map(|found| found.value), Ok(Database::InContainer { container: name, .. }) if name == container.name)
    }
}

impl Findings {
    /// Says what was found.
    fn tell(&self, app: &App) {
        let tell = |what: &str, value: String, origin: String| app.monitor.emit(Event::Found { what: what.to_owned(), value, origin });
        let described = self.stack.described();
        tell("Immich", described.value, described.origin);
        if let Some(media) = &self.media {
            tell("library", media.value.path.display().to_string(), media.origin.clone());
        }
        if let Some(database) = &self.database {
            tell("database", database.value.target(), database.origin.clone());
        }
        let files = self.stack.site.files_of_secrets();
        if !files.is_empty() && matches!(&self.database, Some(Found { value: Database::Elsewhere(_), .. })) {
            let message = format!(
                "`{}` is told of its database by files that are not read here ({}): say --database-password-file",
                self.stack.site.server.name,
                files.join(", ")
            );
            app.monitor.emit(Event::Warned { message });
        }
    }

    /// The client of the database that was found; what was said of user, name and password counts.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn client(&self, app: &App) -> anyhow::Result<Option<Client>> {
        match &self.database {
            Some(found) => Ok(Some(database::of_found(app, &found.value, self.stack.engine.as_ref().map(|(engine, _)| engine)).await?)),
            None => Ok(None),
        }
    }

    /// Where the server sees its media location.
    pub fn media_location(&self) -> Option<String> {
        self.stack.site.media_location().value.to_str().map(str::to_owned)
    }

    /// The media location as a source.
    ///
    /// # Errors
    /// A folder is mounted under a name that none can have.
    pub fn library(&self) -> Result<Option<Source>, InvalidPath> {
        let source = |media: &Media| {
            let mounts = roots(&media.mounts)?;
            Ok(Source { root: Root::Library, path: media.path.clone(), server_path: None, mounts })
        };
        self.media.as_ref().map(|media| source(&media.value)).transpose()
    }
}

/// Mounts as a source has them. A file that is mounted is no folder to walk, and left out.
///
/// # Errors
/// A folder is mounted under a name that none can have.
pub fn roots(mounts: &[(PathBuf, PathBuf)]) -> Result<Vec<(RootPath, PathBuf)>, InvalidPath> {
    let root = |(below, path): &(PathBuf, PathBuf)| Ok((RootPath::from_bytes(below.as_os_str().as_bytes())?, path.clone()));
    mounts.iter().filter(|(_, path)| path.is_dir()).map(root).collect()
}

/// External libraries, as far as they are known before the repository is open.
#[derive(Debug, Default)]
pub struct Externals {
    /// Each of them.
    pub found: Vec<External>,
    /// Whether the database told of them.
    told: bool,
}

impl Findings {
    /// Where the external libraries are that Immich's database names. Without a database, those that are `known`.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn externals(&self, app: &App, client: Option<&Client>) -> anyhow::Result<Externals> {
        let Some(client) = client else { return Ok(Externals::default()) };
        let ignored = app.settings.texts("external-ignore");
        let is_ignored =
            |library: &str, path: &str| ignored.iter().any(|ignored| ignored == library || (ignored.starts_with('/') && Path::new(path).starts_with(ignored)));
        let paths = import_paths(client).await?.into_iter().filter(|one| !is_ignored(&one.library, &one.path)).map(|one| one.path);
        let found = self.stack.site.externals(&paths.collect::<Vec<_>>(), &self.stack.here);
        Ok(Externals { found, told: true })
    }

    /// Those that an earlier snapshot has, where the database was not asked.
    fn known_ones(&self, known: &[Known]) -> Vec<External> {
        let paths: Vec<_> = known.iter().map(|known| known.server_path.to_string_lossy().into_owned()).collect();
        self.stack.site.externals(&paths, &self.stack.here)
    }

    /// Sources for the external libraries. Those that were said (`said`) are left as they are, and what lies in one of them; dropped ones stay away.
    /// `known` are those of the newest snapshot: their names are kept.
    ///
    /// # Errors
    /// A folder is mounted under a name that none can have.
    pub fn external_sources(
        &self,
        app: &App,
        externals: &Externals,
        said: &[Source],
        dropped: &[ExternalName],
        known: Option<&[Known]>,
    ) -> Result<Vec<Source>, InvalidPath> {
        let warn = |message: String| app.monitor.emit(Event::Warned { message });
        let is_last = known.is_some();
        let known = known.unwrap_or_default();
        let of_known;
        let found = if externals.told {
            &externals.found
        } else {
            of_known = self.known_ones(known);
            &of_known
        };
        if !externals.told && is_last && known.is_empty() && said.iter().all(|source| source.root == Root::Library) {
            warn("without the database it is not known whether Immich has external libraries: if it has, give them by --external".to_owned());
        }
        let name_of = |source: &Source| if let Root::External(name) = &source.root { Some(name.clone()) } else { None };
        let mut taken: BTreeSet<ExternalName> = said.iter().filter_map(name_of).collect();
        let mut sources = Vec::new();
        for external in found {
            let is_said = |source: &Source| source.server_path.as_ref().is_some_and(|path| external.server_path.starts_with(path_of(path)));
            if said.iter().any(is_said) {
                continue;
            }
            let name = external.name(known, &taken)?;
            if dropped.contains(&name) {
                continue;
            }
            let shown = external.server_path.display();
            let is_known = known.iter().any(|known| known.name == name);
            match &external.place {
                Place::Found { path, mounts } => {
                    let is_empty = std::fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none());
                    if is_empty && !is_known {
                        if is_last {
                            warn(format!("the external library `{shown}` is left out: `{}` cannot be read, or nothing is in it", path.display()));
                        }
                        continue;
                    }
                    taken.insert(name.clone());
                    let server_path = Some(external.server_path.as_os_str().as_bytes().to_vec());
                    sources.push(Source { root: Root::External(name), path: path.clone(), server_path, mounts: roots(mounts)? });
                }
                Place::Unmounted if is_last => {
                    let server = &self.stack.site.server.name;
                    warn(format!("the external library `{shown}` is left out: nothing of the host is mounted there in `{server}`"));
                }
                Place::NotHere(error) if is_last => warn(format!("the external library `{shown}` is left out: {error}; {}", error.hint())),
                Place::Unmounted | Place::NotHere(_) => {}
            }
        }
        if is_last {
            for source in &sources {
                let what = format!("external library `{}`", name_of(source).map(|name| name.to_string()).unwrap_or_default());
                let origin = path_shown(source).map_or_else(String::new, |path| format!("mount of `{}` at {path}", self.stack.site.server.name));
                app.monitor.emit(Event::Found { what, value: source.path.display().to_string(), origin });
            }
        }
        Ok(sources)
    }
}

/// A path that is kept as bytes.
pub fn path_of(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

fn path_shown(source: &Source) -> Option<String> {
    source.server_path.as_ref().map(|path| String::from_utf8_lossy(path).into_owned())
}
