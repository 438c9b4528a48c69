"""The runtime harness: open an artifact, measure it, compare it with a budget.

Needs the standard library and numpy; an engine is imported only inside its own session module, so this
package can be copied alone to a Raspberry Pi.
"""
