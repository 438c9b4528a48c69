"""An artifact in one smaller file for the way to the device, unpacked bit by bit."""
