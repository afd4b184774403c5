# SPDX-License-Identifier: GPL-2.0-or-later
"""oktest - unittest.main() that prints the lines dev/check counts."""
import sys
import unittest


class Result(unittest.TestResult):
    @staticmethod
    def name(test):
        return test.id().removeprefix('__main__.')

    def addSuccess(self, test):
        print('ok', self.name(test), flush=True)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        print('not ok', self.name(test))
        print('    ' + self.failures[-1][1].replace('\n', '\n    '), flush=True)

    def addError(self, test, err):
        self.addFailure(test, err)

    def addSkip(self, test, reason):
        print('skip', self.name(test), '#', reason, flush=True)


def main():
    result = Result()
    unittest.defaultTestLoader.loadTestsFromModule(
        sys.modules['__main__']).run(result)
    sys.exit(bool(result.failures))
