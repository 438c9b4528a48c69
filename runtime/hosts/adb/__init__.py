"""An Android phone, by the user's own adb client and with the engine's own tools."""
