"""The suites that come with basedbench, as YAML files beside this one; read them with basedbench.config.load_suite."""
