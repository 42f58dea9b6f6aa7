from tests.support.data_cache import cache as cache
