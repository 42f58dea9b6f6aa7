from tests.support.registries import registry_of as registry_of
