//! Where names lead, as an administrator wrote it: any text gives a configuration or an error with a line of it, and a question
//! to it an answer.
#![no_main]

use registry::{RegistriesConf, RegistryError};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let mut conf = RegistriesConf::default();
    match conf.add("file", text) {
        Ok(()) => {}
        Err(RegistryError::Conf { line, .. }) => assert!((1..=text.lines().count() + 1).contains(&line)),
        Err(other) => panic!("{other}"),
    }
    for name in ["app", "team/app:1", "a.io/x", "localhost/x", "x.a.io/team/app"] {
        let Ok(candidates) = conf.candidates(name) else { continue };
        assert!(!candidates.is_empty());
        candidates.iter().for_each(|reference| drop(conf.endpoints(reference)));
    }
});
