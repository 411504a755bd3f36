from hypothesis import HealthCheck, settings

# How fast examples are drawn depends on what else the machine does, and says nothing about the code.
settings.register_profile("unimm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unimm")
