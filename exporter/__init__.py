"""The compression front end, the pipeline, the reports and the command line."""
