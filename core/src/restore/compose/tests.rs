use super::*;
use crate::stack::discover::{Choice, Teller, choose, sites};
use crate::stack::services::journal::Phase;
use bollard::models::ContainerInspectResponse;

fn containers(recorded: &str) -> Vec<Container> {
    let found: Vec<ContainerInspectResponse> = serde_json::from_str(recorded).unwrap();
    found.into_iter().map(Container::from).collect()
}

fn created() -> Vec<Container> {
    containers(include_str!("../../../../app/tests/recorded/compose-2-created.json"))
}

fn site(containers: &[Container]) -> Site {
    choose(containers, &Choice { project: Some("immich".to_owned()), folder: None }, &Here::Host).unwrap()
}

fn root(name: &str, server_path: &str) -> SourceRoot {
    SourceRoot { root: None, external: Some(name.parse().unwrap()), path: "/old".to_owned(), server_path: Some(server_path.to_owned()) }
}

#[test]
fn a_project_that_was_only_made_says_where_everything_goes_though_no_folder_is_there_yet() {
    let site = site(&created());
    let roots = [SourceRoot { root: None, external: None, path: "/old/library".to_owned(), server_path: None }, root("nas", "/mnt/media/photos/2024")];
    let found = Destination::find(&site, &Here::Host, &roots, &BTreeMap::new()).unwrap();
    assert_eq!((found.project.as_str(), found.media.to_str().unwrap()), ("immich", "/srv/immich-app/library"));
    assert_eq!(found.mounts, [(RootPath::parse("thumbs").unwrap(), PathBuf::from("/ssd/thumbs"))]);
    assert_eq!(found.externals.values().map(|path| path.to_str().unwrap()).collect::<Vec<_>>(), ["/srv/photos/2024"]);
    assert_eq!((found.database_container.name.as_str(), found.database_service()), ("immich_postgres", "database"));
    assert_eq!(found.image_version.as_deref(), Some("3.1.0"));
    assert!(running(&site).is_empty());
}

#[test]
fn an_external_library_without_a_mount_is_named_unless_it_is_said_where_it_goes() {
    let site = site(&created());
    let roots = [root("usb", "/mnt/usb")];
    let error = Destination::find(&site, &Here::Host, &roots, &BTreeMap::new()).unwrap_err();
    assert!(matches!(&error, IntoProjectError::NoMount { name, server_path } if name.as_str() == "usb" && server_path == "/mnt/usb"), "{error}");
    assert!(error.hint().unwrap().contains("--external usb=DIR"));
    let said = BTreeMap::from([("usb".parse().unwrap(), PathBuf::from("/new/usb"))]);
    assert_eq!(Destination::find(&site, &Here::Host, &roots, &said).unwrap().externals, said);
}

#[test]
fn inside_of_a_container_folders_are_those_that_are_mounted_there() {
    let here = Here::Container { name: "backup".to_owned(), mounts: Vec::new() };
    let error = Destination::find(&site(&created()), &here, &[], &BTreeMap::new()).unwrap_err();
    assert!(error.to_string().contains("not mounted in the container `backup`"), "{error}");
}

#[test]
fn versions_are_compared_as_numbers() {
    let cases = [
        (Some("3.1.0"), Some("3.1.0"), Fit::Same),
        (Some("v3.1.0"), Some("3.1"), Fit::Same),
        (Some("3.10.0"), Some("3.9.2"), Fit::Newer),
        (Some("2.5.0-rc.1"), Some("2.5.1"), Fit::Older),
        (Some("1.135.3"), Some("3.1.0"), Fit::Older),
        (Some("release"), Some("3.1.0"), Fit::Unknown),
        (None, Some("3.1.0"), Fit::Unknown),
        (Some("3.1.0"), None, Fit::Unknown),
    ];
    for (image, dump, expected) in cases {
        assert_eq!(fit(image, dump), expected, "{image:?} {dump:?}");
    }
}

#[test]
fn all_services_are_to_be_up_in_the_end_but_those_that_this_program_needs() {
    let up = |containers: &[Container]| {
        let site = sites(containers, Teller::Engine).pop().unwrap();
        let found = Destination::find(&site, &Here::Host, &[], &BTreeMap::new()).unwrap();
        let journal = to_be_up(&site, &found, "unix:///s", "abc");
        assert_eq!((journal.by, journal.phase, journal.run.as_deref()), (By::Hand, Phase::DatabaseAlone, Some("restore of abc")));
        services_of(&journal).into_iter().collect::<Vec<_>>()
    };
    assert_eq!(up(&created()), ["database", "immich-machine-learning", "immich-server", "redis"]);
    let mut some = created();
    some.iter_mut().for_each(|container| container.is_self = container.service == "redis");
    assert_eq!(up(&some), ["database", "immich-machine-learning", "immich-server"]);
}

#[test]
fn what_ran_before_is_up_in_the_end_with_the_server_and_its_database() {
    let site = site(&created());
    let found = Destination::find(&site, &Here::Host, &[], &BTreeMap::new()).unwrap();
    let mut journal = to_be_up(&site, &found, "unix:///s", "older");
    journal.services.iter_mut().flat_map(|service| &mut service.containers).for_each(|container| container.state = State::Exited);
    add_needed(&mut journal, &site, &found, "abc");
    assert_eq!(services_of(&journal).into_iter().collect::<Vec<_>>(), ["database", "immich-server"]);
    assert_eq!(journal.run.as_deref(), Some("restore of abc"));
}

#[test]
fn the_server_runs_and_so_does_whatever_has_its_image() {
    let mut containers = containers(include_str!("../../../../app/tests/recorded/compose-2.json"));
    let names = |containers: &[Container]| running(&site(containers)).into_iter().map(|container| container.name).collect::<Vec<_>>();
    assert_eq!(names(&containers), ["immich_server"]);
    let mut second = containers.iter().find(|container| container.name == "immich_server").unwrap().clone();
    (second.name, second.service, second.id) = ("immich_microservices".to_owned(), "immich-microservices".to_owned(), "1".to_owned());
    containers.push(second);
    assert_eq!(names(&containers), ["immich_microservices", "immich_server"]);
    containers.iter_mut().for_each(|container| container.state = State::Exited);
    assert_eq!(names(&containers), [""; 0]);
}
