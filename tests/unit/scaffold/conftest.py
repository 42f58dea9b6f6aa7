from tests.support.written_packages import packages as packages
