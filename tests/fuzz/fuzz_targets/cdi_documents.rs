//! A spec file of a device, and the cache of the dynamic linker in which a driver's libraries are looked for: any bytes
//! are one or are refused, and what a spec file may do stays within what was checked.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let parsed = cdi::document::parse(bytes).or_else(|_| cdi::document::parse_yaml(bytes));
    if let Ok(document) = parsed {
        cdi::name::check_kind(&document.kind).expect("it was checked");
        let mut all = document.edits.clone();
        document.devices.values().for_each(|edits| all.append(edits));
        assert!(all.device_nodes.iter().all(|node| node.path.is_absolute() && node.on_host().is_absolute()));
        assert!(all.mounts.iter().all(|mount| mount.container_path.is_absolute()));
        assert!(all.hooks.iter().all(|hook| hook.path.is_absolute() && hook.timeout.is_none_or(|seconds| seconds > 0)));
    }
    let _ = cdi::library_cache::libraries(bytes);
});
